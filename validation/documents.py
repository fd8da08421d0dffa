"""Reading what people write by hand, policies and probe packs: YAML in UTF-8, checked against a model.

Guarantees:
    1. Every fault of a file is in one line that says where it is.
    2. A key that stands twice in a mapping is a fault; YAML itself would keep the last and say nothing.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError
from yaml.constructor import ConstructorError

from validation.errors import ValidationError

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Plain YAML that refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "expected a plain key, found a list or mapping", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_document(path: Path, *, error: type[ValidationError]) -> Any:
    """Returns what a YAML file holds.

    Raises:
        ValidationError: As `error`: the file cannot be read, or is not YAML in UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise error(f"expected a readable YAML file, found {path}: {fault}; check the path and its content") from fault
    return read_content(content, source=str(path), error=error)


def read_content(content: bytes, *, source: str, error: type[ValidationError]) -> Any:
    """Returns what YAML holds that is in memory already; `source` is where it comes from, for messages.

    Raises:
        ValidationError: As `error`: it is not YAML in UTF-8.
    """
    try:
        return yaml.load(content.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as fault:
        raise error(f"expected a readable YAML file, found {source}: {fault}; save it as UTF-8") from fault
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as fault:  # a 13th month is a ValueError
        said = " ".join(str(fault).split())
        raise error(f"expected a readable YAML file, found {source}: {said}; check the path and its content") from fault


def parse_document(
    model: type[M], document: Any, *, source: str, what: str, example: str, error: type[ValidationError]
) -> M:
    """Returns a document as a model.

    Args:
        model: What the document must be.
        document: What the file holds.
        source: Where it comes from, for messages.
        what: What it is called in messages.
        example: A line of a valid one.
        error: What to raise.

    Raises:
        ValidationError: As `error`: a key is unknown or a value is out of range; every fault is named.
    """
    if not isinstance(document, dict):
        raise error(f"expected a mapping such as `{example}` in {source}, found {type(document).__name__}; correct it")
    try:
        return model.model_validate(document)
    except PydanticError as fault:
        known = ", ".join(model.model_fields)
        faults = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or what}: {each['msg']}"
            + (f" (known keys: {known})" if each["type"] == "extra_forbidden" and len(each["loc"]) == 1 else "")
            for each in fault.errors()
        )
        raise error(f"expected a valid {what}, found in {source}: {faults}; correct the file") from fault
