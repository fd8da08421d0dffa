"""What an edit can be given away as: a merged folder, a single file, a LoRA."""

from scapre.exports.folder import check_mergeable, merge, merging
from scapre.exports.lora import LoraExport, export_lora
from scapre.exports.single_file import export_single_file, rewriting

__all__ = ["LoraExport", "check_mergeable", "export_lora", "export_single_file", "merge", "merging", "rewriting"]
