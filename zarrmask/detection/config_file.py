"""detectron2 config files, read as data: no tag in them is ever executed."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from zarrmask.errors import CheckpointError

Document: TypeAlias = Mapping[str, Any]
"""Nested mappings; every list in them is a tuple."""

_LARGEST_FILE = 256 * 1024  # detectron2's own dumps have about 10 KB
_LONGEST_CHAIN = 10
_CFG_NODE = "tag:yaml.org,2002:python/object/new:"


class _DataLoader(yaml.SafeLoader):
    """A safe loader that also understands how PyYAML dumps a `CfgNode`, as plain mappings."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys: no config has them, and nested ones grow without bound."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "merge keys (<<) are not understood", node.start_mark
            )

    def construct_tuple(self, node: yaml.Node) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a list", node.start_mark)
        return tuple(self.construct_object(item, deep=True) for item in node.value)

    def construct_string(self, node: yaml.ScalarNode) -> Any:
        """Read a string; one that spells a tuple or list is that, as in detectron2."""
        text = self.construct_scalar(node)
        if text.startswith(("(", "[")):
            try:
                return _tuples(ast.literal_eval(text))
            except (ValueError, SyntaxError, MemoryError):
                return text
        return text

    def construct_cfg_node(self, suffix: str, node: yaml.Node) -> dict[Any, Any]:
        if not suffix.endswith(".CfgNode") or not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag {node.tag} asks to make a Python object", node.start_mark
            )
        items = self.construct_mapping(node, deep=True).get("dictitems", {})
        if not isinstance(items, dict):
            raise yaml.constructor.ConstructorError(
                None, None, "dictitems of a CfgNode is no mapping", node.start_mark
            )
        return items


_DataLoader.add_constructor("tag:yaml.org,2002:seq", _DataLoader.construct_tuple)
_DataLoader.add_constructor("tag:yaml.org,2002:python/tuple", _DataLoader.construct_tuple)
_DataLoader.add_constructor("tag:yaml.org,2002:str", _DataLoader.construct_string)
# A number to detectron2, a text to YAML 1.1: 1e-3, without a point.
_DataLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_DataLoader.add_multi_constructor(_CFG_NODE, _DataLoader.construct_cfg_node)


def read_documents(path: Path) -> list[Document]:
    """Read a config file and the chain of files it is based on.

    Returns
    -------
    list of Document
        The file itself first, then its `_BASE_`, and so on: the first that has a key decides.

    Raises
    ------
    CheckpointError
        If a file is missing, too large, no YAML, or asks for anything but data.
    """
    documents: list[Document] = []
    chain: list[Path] = []
    following: Path | None = path
    while following is not None:
        if len(chain) == _LONGEST_CHAIN or following.resolve() in chain:
            raise CheckpointError(f"{path}: its _BASE_ files go round in a circle or too deep")
        if chain and not following.is_file():
            raise CheckpointError(
                f"{chain[-1]} is based on {following}, which does not exist. Put that file there "
                "(detectron2 keeps it in its configs/ folder), or start from a config of "
                "zarrmask's own configs/ folder, which need no base."
            )
        chain.append(following.resolve())
        documents.append(_read(following))
        following = _base(following, documents[-1])
    return documents


def _read(path: Path) -> Document:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes; a model config has at most "
                f"{_LARGEST_FILE:,}. Give a detectron2 config (YAML)."
            )
        # The loader makes nothing but data (see above), so this is no unsafe load.
        document = yaml.load(path.read_text("utf-8"), Loader=_DataLoader)  # noqa: S506
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the model config: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise CheckpointError(
            f"{path} is not a detectron2 config that can be read as data alone; nothing in it was "
            f"run.\n{error}"
        ) from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(f"{path} is not a detectron2 config: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path} is not a detectron2 config: expected a mapping with MODEL and INPUT, found "
            f"{type(document).__name__}"
        )
    return document


def _base(path: Path, document: Document) -> Path | None:
    base = document.get("_BASE_")
    if base is None:
        return None
    if not isinstance(base, str) or "://" in base:
        raise CheckpointError(
            f"{path} is based on {base!r}; only a file beside it can be read. Download that file "
            "and let _BASE_ name it, or start from a config of zarrmask's own configs/ folder."
        )
    return path.parent / Path(base).expanduser()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
