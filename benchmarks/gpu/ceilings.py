"""What the device can do at most: copies in its memory and to it, matrix products.

    python -m benchmarks.gpu.ceilings --out out/ceilings.json

Everything else is read as a share of these. Inputs are random: products of zeros are quicker than
those of data.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.clock import Spread, timed
from benchmarks.gpu.results import Asked, Table, asked


def main() -> None:
    """Measure all ceilings."""
    run = asked(__doc__)
    if run.device == "cuda":
        run.results.fact("device", torch.cuda.get_device_name())
    table = run.results.table(
        "Ceilings",
        ["what", "size", "ms", "rate", "unit"],
        "Medians of 5 windows, the range in brackets. A copy in device memory counts bytes read and written.",
    )
    _copies(run, table)
    _products(run, table)


def _copies(run: Asked, table: Table) -> None:
    size = run.choose(4 << 30, 1 << 22)
    source = torch.rand(size // 4, device=run.device)
    target = torch.empty_like(source)
    _put(
        run,
        table,
        "copy in device memory",
        size,
        timed(lambda: target.copy_(source), run.device, 5),
    )
    size = run.choose(1 << 30, 1 << 20)
    target = torch.empty(size // 4, device=run.device)
    for name, is_pinned in (("pinned", True), ("pageable", False)):
        if is_pinned and run.device != "cuda":
            continue
        host = torch.rand(size // 4, pin_memory=is_pinned)
        spread = timed(lambda host=host: target.copy_(host, non_blocking=True), run.device, 3)  # type: ignore[misc]
        _put(run, table, f"host to device, {name}", size, spread)


def _put(run: Asked, table: Table, what: str, size: int, spread: Spread) -> None:
    passes = 2 if what.startswith("copy") else 1
    rate = passes * size / spread.median / 1e6
    run.results.fact(what, rate)
    run.results.add(table, what, f"{size / 2**20:,.0f} MiB", spread.text(), round(rate, 1), "GB/s")


def _products(run: Asked, table: Table) -> None:
    side = run.choose(8192, 128)
    types = [("bf16", torch.bfloat16, False), ("fp32", torch.float32, False)]
    if run.device == "cuda":
        types.append(("tf32", torch.float32, True))
    for name, dtype, is_tf32 in types:
        a, b = (torch.randn(side, side, device=run.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        try:
            calls = 3 if name == "fp32" else 10
            spread = timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), run.device, calls)  # type: ignore[misc]
        finally:
            torch.set_float32_matmul_precision(before)
        rate = 2 * side**3 / spread.median / 1e9
        run.results.fact(f"{name} product", rate)
        size = f"{side} x {side} x {side}"
        run.results.add(
            table, f"{name} matrix product", size, spread.text(), round(rate, 1), "TFLOP/s"
        )


if __name__ == "__main__":
    main()
