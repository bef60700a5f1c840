"""What turns vectors into codes, as one thing that can be saved, and loaded to code new items alike."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prismrec.config import UserError
from prismrec.data.encode.semantic import Codes
from prismrec.data.rows import Floats
from prismrec.data.semantic.residual import decode, encode
from prismrec.data.semantic.rq_vae import RqVae, VaeShape

Method = Literal["rq_kmeans", "rq_vae"]
_FACTS = "prismrec"


@dataclass(frozen=True, slots=True)
class Coded:
    """Some vectors and what became of them.

    Args:
        codes: (b, L).
        squares: (b, L + 1) squared lengths of what is left over after 0 to L levels, in the space that
            is quantised.
        vector_squares: (b,) squared lengths of the vectors.
        errors: (b,) squared distances of the vectors from what their codes stand for.
    """

    codes: Codes
    squares: Floats
    vector_squares: Floats
    errors: Floats


class Codebooks:
    """Fitted centers, and for `rq_vae` the encoder before and the decoder behind them.

    Vectors are coded in double precision, so that a code depends on its vector alone and not on
    those that happen to be coded with it.

    Args:
        fitted: centers (V_l, D) of every level, or a trained RQ-VAE.
    """

    def __init__(self, fitted: list[Tensor] | RqVae) -> None:
        self._model = fitted.double().eval() if isinstance(fitted, RqVae) else None
        centers = fitted.codebooks if isinstance(fitted, RqVae) else fitted
        self._centers = [each.detach().double() for each in centers]

    @property
    def method(self) -> Method:
        """How they were fitted."""
        return "rq_kmeans" if self._model is None else "rq_vae"

    @property
    def sizes(self) -> tuple[int, ...]:
        """(L,) codes of every level."""
        return tuple(len(each) for each in self._centers)

    @property
    def width(self) -> int:
        """D, numbers of a vector."""
        return self._centers[0].shape[1] if self._model is None else self._model.shape.width

    def code(self, vectors: Floats) -> Coded:
        """Codes of (b, D) vectors."""
        given = torch.from_numpy(vectors).to(self._centers[0])
        with torch.inference_mode():
            latent = given if self._model is None else self._model.latent(given)
            codes, squares = encode(latent, self._centers)
            rebuilt = decode(codes, self._centers)
            if self._model is not None:
                rebuilt = self._model.reconstructed(rebuilt)
            errors = (given - rebuilt).square().sum(dim=1)
            own = given.square().sum(dim=1)
        return Coded(
            codes.int().cpu().numpy(), *(each.cpu().numpy() for each in (squares, own, errors))
        )

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a vector's codes."""
        found = hashlib.sha256(json.dumps(self._form()).encode())
        for name, tensor in sorted(self._tensors().items()):
            found.update(name.encode())
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write a safetensors file, whole or not at all; one that is there is replaced.

        Args:
            path: the file.
            facts: what else is said of them.

        Raises:
            UserError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        said = {**facts, **self._form(), "digest": self.digest}
        try:
            save_file(self._tensors(), draft, {_FACTS: json.dumps(said)})
            draft.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, of another kind or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads((file.metadata() or {})[_FACTS])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            codebooks = cls(_fitted(said, tensors))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot be read as codebooks ({str(error).splitlines()[0]}); name a file "
                "that `prismrec data semantic-ids` wrote beside its codes"
            ) from None
        if codebooks.digest != said["digest"]:
            raise UserError(f"{path}: its SHA-256 is not the one it says; copy or fit it again")
        return codebooks

    def _form(self) -> dict[str, Any]:
        shape = {} if self._model is None else {"shape": asdict(self._model.shape)}
        return {"method": self.method, "sizes": list(self.sizes), **shape}

    def _tensors(self) -> dict[str, Tensor]:
        """As fitted, in single precision: what is read back gives the same codes."""
        if self._model is not None:
            named = self._model.state_dict()
        else:
            named = {f"codebook_{level}": each for level, each in enumerate(self._centers)}
        return {name: each.float().cpu().contiguous() for name, each in named.items()}


def _fitted(said: Mapping[str, Any], tensors: dict[str, Tensor]) -> list[Tensor] | RqVae:
    if said["method"] == "rq_kmeans":
        return [tensors[f"codebook_{level}"] for level in range(len(said["sizes"]))]
    shape = said["shape"]
    model = RqVae(
        VaeShape(shape["width"], tuple(shape["sizes"]), tuple(shape["hidden"]), shape["latent"])
    )
    model.load_state_dict(tensors)
    return model.requires_grad_(False)
