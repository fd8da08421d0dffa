"""What an edit can be given away as: a merged folder, a single file, a LoRA."""

from scapre.exports.folder import merge
from scapre.exports.lora import LoraExport, export_lora
from scapre.exports.single_file import export_single_file

__all__ = ["LoraExport", "export_lora", "export_single_file", "merge"]
