"""What PostgreSQL prints of a tree is read as it is written, whatever names are in it."""

from __future__ import annotations

import pytest

from orchestrator.inference.analysis.nodes import Node, read_node, read_value
from orchestrator.inference.analysis.trees import Tree, constant_text, read_tree, type_of


def test_a_node_has_its_fields_and_its_place() -> None:
    text = "xx {A :one 1 :two <> :list (1 {B :c d}) :node {C :e f}} yy"
    node = read_node(text, 3)
    assert (node.kind, node.number("one"), node.text("two")) == ("A", 1, "")
    assert [each.kind for each in node.nodes("list")] == ["B"]
    assert [each.text("e") for each in node.nodes("node")] == ["f"]
    assert text[node.start : node.end] == "{A :one 1 :two <> :list (1 {B :c d}) :node {C :e f}}"
    assert {each.kind for each in node.walk()} == {"A", "B", "C"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("plain", "plain"),
        (r"two\ words", "two words"),
        (":colon", ":colon"),
        (r"\{A\ :b\ c\}", "{A :b c}"),
        (r"a\)", "a)"),
    ],
)
def test_names_are_read_whatever_is_in_them(written: str, name: str) -> None:
    node = read_node(f"{{ALIAS :aliasname {written} :colnames <>}}")
    assert (node.text("aliasname"), node.text("colnames")) == (name, "")


def test_deep_nodes_need_no_stack() -> None:
    depth = 20_000
    node = read_node("{A :arg " * depth + "1" + "}" * depth)
    assert sum(1 for _ in node.walk()) == depth


@pytest.mark.parametrize("text", ["", "word", "(1 2)"])
def test_what_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_node(text)


def test_a_text_that_ends_within_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match="ends within"):
        read_value("{A :b (c")


def test_names_that_look_like_fields_call_nothing() -> None:
    tree = Tree(r"{ALIAS :aliasname x\ :funcid\ 1574 :colnames (\"\{FUNCEXPR\ :funcid\ 1574\")}")
    assert tree.functions() == frozenset()
    assert list(tree.calls([1574])) == []


def constant(words: str, kind: int = 25) -> Node:
    return read_node(
        f"{{CONST :consttype {kind} :consttypmod -1 :constcollid 100 :constlen -1 :constbyval false"
        f" :constisnull false :location 1 :constvalue {words}}}"
    )


@pytest.mark.parametrize(
    ("words", "encoding", "text"),
    [
        ("5 [ 20 0 0 0 120 ]", "utf-8", "x"),
        ("6 [ 24 0 0 0 -61 -92 ]", "utf-8", "ä"),
        ("5 [ 20 0 0 0 -28 ]", "iso8859-1", "ä"),
        ("2 [ 5 120 ]", "utf-8", "x"),
    ],
    ids=["long header", "two bytes", "latin", "short header"],
)
def test_a_constant_text_is_read_in_the_encoding_of_the_server(words: str, encoding: str, text: str) -> None:
    assert constant_text(constant(words), encoding) == text


def test_what_is_no_text_is_none() -> None:
    assert constant_text(constant("4 [ 1 0 0 0 0 0 0 0 ]", 23), "utf-8") is None
    assert type_of(constant("4 [ 1 0 0 0 0 0 0 0 ]", 23)) == 23


def test_what_nothing_uses_is_cut_out() -> None:
    unused = "{COMMONTABLEEXPR :ctename w :ctequery {QUERY :commandType 1 :x {FUNCEXPR :funcid 7}} :cterefcount 0}"
    text = f"{{QUERY :commandType 1 :cteList ({unused}) :y {{FUNCEXPR :funcid 8}}}}"
    assert read_tree(text).functions() == {8}
    assert read_tree(text.replace(":commandType 1 :x", ":commandType 3 :x")).functions() == {7, 8}
