"""Finished parts are kept, gone on from, and never mixed with those of another configuration."""

import pytest
import torch

from medsign_lite.records.kept_parts import Part, measure_parts
from medsign_lite.results import read_result


class Wanted:
    """A target of which nothing but its configuration and streams are used."""

    def __init__(self, **config):
        self.about = config

    def config(self):
        return self.about

    def generator(self, name):
        return torch.Generator().manual_seed(len(name))


def counting(calls, *, fail=()):
    """Parts "first" and "second", in groups of their own, that note when they are measured."""

    def part(name):
        def measure(generator):
            calls.append(name)
            if name in fail and calls.count(name) == 1:
                raise KeyboardInterrupt
            return [{"attack": name, "value": float(torch.rand(1, generator=generator))}]

        return Part(group=f"group {name}", settings={"of": name}, measure=measure)

    return {name: part(name) for name in ("first", "second")}


def test_measure_keeps_finished_parts_and_goes_on(tmp_path):
    calls, target = [], Wanted(images=3)
    chosen = counting(calls, fail=("second",))
    with pytest.raises(KeyboardInterrupt):
        measure_parts(target, chosen, keep=tmp_path, command="measure")
    groups = measure_parts(target, chosen, keep=tmp_path, command="measure")
    assert calls == ["first", "second", "second"]
    assert [*groups] == ["group first", "group second"]
    assert groups == measure_parts(target, chosen, keep=tmp_path, command="measure")
    assert len(calls) == 3
    alone = measure_parts(
        target, {"second": chosen["second"]}, keep=tmp_path / "other", command="measure"
    )
    (row,), (of_all,) = alone["group second"], groups["group second"]
    assert row | {"measured": ""} == of_all | {"measured": ""}  # measured at a time of its own
    assert row["command"] == "measure --only second"


def test_parts_of_another_configuration_are_measured_beside_the_others(tmp_path):
    calls = []
    chosen = counting(calls)
    first = measure_parts(Wanted(images=3), chosen, keep=tmp_path)
    measure_parts(Wanted(images=4), chosen, keep=tmp_path)
    other = {"first": Part(group="group first", settings={"of": "x"}, measure=lambda _: [{}])}
    assert "value" not in measure_parts(Wanted(images=3), other, keep=tmp_path)["group first"][0]
    assert calls == ["first", "second"] * 2
    assert measure_parts(Wanted(images=3), chosen, keep=tmp_path) == first and len(calls) == 4
    measure_parts(Wanted(images=3), chosen, keep=tmp_path, again=True)
    assert len(calls) == 6


def test_rows_say_when_and_of_which_commit_they_were_measured(tmp_path):
    (row,) = measure_parts(Wanted(images=3), counting([]), keep=tmp_path)["group first"]
    (path,) = tmp_path.glob("first-*.json")
    document = read_result(path)
    assert row["measured"] == f"{document['recorded']} at {document['commit']}"
    assert document["config"] == {"images": 3, "of": "first"} and "command" not in row
