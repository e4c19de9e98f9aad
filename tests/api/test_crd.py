"""Generated CRDs: structural, bounded, deterministic; stale files are named with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import yaml
from msgspec import Meta, inspect

from orchestrator.api.crd import LOOKS, Unbounded, Walk, definition, files, main, schema
from orchestrator.api.tidemark import KINDS, BackupPolicy
from orchestrator.api.tidemark.backup_policy import BackupPolicySpec, ChunkSize
from orchestrator.repository.layout import CHUNK_SIZES

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]


def nodes(shape: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema of a schema, with its path."""
    yield path, shape
    for name, inner in shape.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in shape:
        yield from nodes(shape["items"], f"{path}[]")
    if "additionalProperties" in shape:
        yield from nodes(shape["additionalProperties"], f"{path}{{}}")


ALL = [
    (path, shape)
    for kind in KINDS
    for part in ("spec", "status")
    for path, shape in nodes(
        definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part],
        f"{kind.RESOURCE.kind}.{part}",
    )
]


def test_every_string_list_and_map_has_a_maximum() -> None:
    for path, shape in ALL:
        match shape["type"]:
            case "string":
                assert "maxLength" in shape or "enum" in shape or shape.get("format") == "date-time", path
            case "array":
                assert "maxItems" in shape, path
            case "object":
                assert "properties" in shape or "maxProperties" in shape, path


def test_every_schema_is_structural_and_has_no_default() -> None:
    for path, shape in ALL:
        assert isinstance(shape["type"], str), path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "default"} & shape.keys(), path
        assert not ("properties" in shape and "additionalProperties" in shape), path


def test_every_field_is_described() -> None:
    for path, shape in ALL:
        for name, inner in shape.get("properties", {}).items():
            assert inner.get("description"), f"{path}.{name}"


def test_every_rule_says_what_to_do() -> None:
    for path, shape in ALL:
        for rule in shape.get("x-kubernetes-validations", []):
            assert rule["message"], path
            assert "\n" not in rule["message"], path


def test_the_statuses_keep_their_conditions_apart_by_type() -> None:
    conditions = [shape for path, shape in ALL if path.endswith(".conditions")]
    assert len(conditions) == len(KINDS)
    assert all(shape["x-kubernetes-list-map-keys"] == ["type"] for shape in conditions)


def test_columns_show_fields_that_there_are() -> None:
    paths = {path for path, _ in ALL}
    for kind, look in LOOKS.items():
        for column in look.columns:
            known = f"{kind.RESOURCE.kind}{column.path}" in paths
            assert known or column.path.startswith(".metadata."), column
            if column.type == "date" and known:
                shape = dict(ALL)[f"{kind.RESOURCE.kind}{column.path}"]
                assert shape["format"] == "date-time", "a date column reckons an age from an instant"


def test_what_the_structs_write_is_what_the_schema_knows() -> None:
    """A field renamed on one side only would be pruned without a word."""
    shape = definition(BackupPolicy)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert {f.encode_name for f in msgspec.structs.fields(BackupPolicySpec)} == set(shape["properties"])


def test_the_chunk_sizes_to_choose_from_are_those_of_the_repository() -> None:
    assert sorted(size.size_bytes for size in ChunkSize) == sorted(CHUNK_SIZES)
    shapes = [shape for path, shape in ALL if path.endswith(".options.chunkSize")]
    assert [shape["enum"] for shape in shapes] == [["64Ki", "256Ki", "1Mi"]] * 3, "policy, Backup and point"


def test_the_files_in_the_chart_are_fresh() -> None:
    assert main(["--check", str(ROOT / "charts" / "tidemark" / "crds")]) == 0


def test_generating_twice_gives_the_same_bytes_and_they_are_yaml() -> None:
    assert files() == files()
    for text in files().values():
        assert "&id" not in text, "no anchors"
        assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"


def test_a_stale_file_is_named_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # given
    assert main([str(tmp_path)]) == 0
    (tmp_path / "backups.yaml").write_text("old")
    (tmp_path / "restores.yaml").unlink()
    (tmp_path / "others.yaml").write_text("x")
    # when
    code = main(["--check", str(tmp_path)])
    # then
    told = capsys.readouterr().err
    assert code == 1
    assert f"{tmp_path / 'backups.yaml'} is out of date; run `make gen`" in told
    assert f"{tmp_path / 'restores.yaml'} is missing" in told
    assert f"{tmp_path / 'others.yaml'} belongs to no kind" in told
    assert "recoverypoints" not in told


@pytest.mark.parametrize(
    "type_",
    [
        str,
        tuple[Annotated[str, Meta(max_length=3)], ...],
        dict[str, int],
        Annotated[tuple[str, ...], Meta(max_length=3)],
    ],
)
def test_an_unbounded_type_stops_the_generation_and_says_where(type_: Any) -> None:
    with pytest.raises(Unbounded, match=r"^Kind\.spec\.x"):
        schema(inspect.type_info(type_), Walk(["Kind", "spec", "x"]))


def test_a_union_of_two_types_is_refused() -> None:
    with pytest.raises(TypeError, match=r"only `X \| None`"):
        schema(inspect.type_info(int | bool), Walk(["Kind"]))


class Torn(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose field must be there and may be null."""

    field: Annotated[int | None, Meta(description="Either.")]


def test_a_required_field_that_may_be_null_is_refused() -> None:
    """A merge patch drops nulls: the object could be written, and then not read back."""
    with pytest.raises(TypeError, match=r"Torn\.field may be None: give it a default"):
        schema(inspect.type_info(Torn), Walk(["Kind"]))
