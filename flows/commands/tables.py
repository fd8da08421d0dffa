"""What a preflight found, as tables for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from scapre.diagnosis import AtRisk

NOTHING = "nothing in particular (the empty prompt)"
AT_RISK_SHOWN = 10


def table_of_targets(anchors: Mapping[str, str], **columns: Mapping[str, str]) -> Table:
    """Returns a table of what each target becomes, and of what further columns say of it."""
    table = Table("concept", "becomes", *(name.replace("_", " ") for name in columns), title="to forget")
    for name, anchor in anchors.items():
        table.add_row(Text(name), Text(anchor or NOTHING), *(Text(told[name]) for told in columns.values()))
    return table


def table_of_risks(at_risk: Sequence["AtRisk"]) -> Table:
    """Returns a table of the retained names nearest to a target."""
    table = Table("retained name", "near", "cosine", title="neighbours at risk, most first")
    for one in at_risk[:AT_RISK_SHOWN]:
        table.add_row(Text(one.name), Text(one.target), f"{one.cosine:.2f}")
    return table
