"""Where every table goes: a search over TorchRec's prices, under rules that keep the numbers the same."""

from prismrec.embeddings.plan.agree import (
    agreed_placement,
    agreed_plan,
    plan_tables,
)
from prismrec.embeddings.plan.expand import TablePlace, sharding_plan
from prismrec.embeddings.plan.find import Plan, PlannedTable, find_plan
from prismrec.embeddings.plan.layouts import choose_layouts, layout_choices, with_layouts
from prismrec.embeddings.plan.lines import (
    line_of,
    place_of,
    predicted_beside,
    predicted_bytes,
)
from prismrec.embeddings.plan.misfit import misfit, remedies, shortage, table_bytes
from prismrec.embeddings.plan.placement import Placement, device_memory, host_memory_per_rank
from prismrec.embeddings.plan.rules import check_ways

__all__ = [
    "Placement",
    "Plan",
    "PlannedTable",
    "TablePlace",
    "agreed_placement",
    "agreed_plan",
    "check_ways",
    "choose_layouts",
    "device_memory",
    "find_plan",
    "host_memory_per_rank",
    "layout_choices",
    "line_of",
    "misfit",
    "place_of",
    "plan_tables",
    "predicted_beside",
    "predicted_bytes",
    "remedies",
    "sharding_plan",
    "shortage",
    "table_bytes",
    "with_layouts",
]
