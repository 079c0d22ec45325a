"""Which rollouts are refused before they touch anything, and who gets a version that came later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.rollout_world import GOOD_FACTS, NOON, World, version
from vedette.controller.domain import rollout as machine
from vedette.controller.domain.errors import ControllerError, InvalidInput, Refused
from vedette.controller.domain.rollout import Rollout, Standing, owed
from vedette.controller.domain.rollout_plan import DEFAULT_TIMEOUT_S, choose_build, plan
from vedette.controller.domain.waves import parse_waves
from vedette.wire import views
from vedette.wire.values import Facts


def _plan(
    world: World,
    what: views.Version | None = None,
    *,
    others: tuple[Rollout, ...] = (),
    soak_s: int = 30,
    timeout_s: int = 60,
    selector: str = "",
) -> Rollout:
    return plan(
        "8",
        what or version(),
        [agent.candidate() for agent in world.agents.values()],
        selector=selector,
        waves=parse_waves(["100%"]),
        soak_s=soak_s,
        timeout_s=timeout_s,
        started_by="ana",
        now=NOON,
        others=others,
    )


def test_an_unsigned_version_is_refused() -> None:
    with pytest.raises(Refused, match="flow-threat:2 is not signed"):
        _plan(World(), version(signed=False))


def test_nobody_selected_is_refused_naming_the_selector() -> None:
    with pytest.raises(Refused, match="no agent matches 'site=s9'"):
        _plan(World(0), selector="site=s9")


def test_an_overlapping_rollout_of_the_same_slot_is_refused_naming_it_and_how_many() -> None:
    first = World(["0", "1", "9"]).start()
    with pytest.raises(Refused, match=r"rollout 7 \(flow-threat:2\) is still moving 2 of these agents") as caught:
        _plan(World(3), version(3), others=(first,))
    assert "abort 7" in caught.value.remedy


def test_a_paused_rollout_still_holds_its_agents() -> None:
    world = World(3)
    world.start()
    world.apply("pause")
    with pytest.raises(Refused, match="still moving 3"):
        _plan(World(3), version(3), others=(world.it,))


@pytest.mark.parametrize("other", ["ended", "another model", "other agents"])
def test_rollouts_that_do_not_meet_run_side_by_side(other: str) -> None:
    world = World(["x", "y"] if other == "other agents" else 3)
    world.start()
    if other == "ended":
        world.apply("abort")
    first = replace(world.it, model="other") if other == "another model" else world.it
    assert _plan(World(3), version(3), others=(first,)).id == "8"


@pytest.mark.parametrize(
    "runtimes", [{}, {"onnxruntime": "1.31.9"}, {"onnxruntime": "newest"}, {"tensorrt": "11.0"}, {"onnxruntime": ""}]
)
def test_a_version_without_a_build_for_an_agent_is_refused_naming_the_agent(runtimes: dict[str, str]) -> None:
    world = World(7)
    world.agents["4"].facts = Facts(runtimes=runtimes)
    with pytest.raises(Refused, match="no build for edge-4") as caught:
        _plan(world)
    assert "onnxruntime>=1.32" in caught.value.why


def test_many_agents_without_a_build_are_counted_not_listed() -> None:
    world = World(12)
    for agent in world.agents.values():
        agent.facts = Facts()
    with pytest.raises(Refused, match=r"edge-0, edge-1, edge-10, edge-11, edge-2 and 7 more"):
        _plan(world)


def test_a_build_in_quarantine_is_refused_naming_the_agent() -> None:
    world = World(3)
    world.start("1,100%")
    canary = world.order()[0]
    world.fail(canary)
    with pytest.raises(Refused, match=f"edge-{canary} will not try flow-threat:2 again"):
        _plan(world)


def test_the_first_build_in_the_release_that_fits_is_chosen() -> None:
    both = replace(
        version(),
        builds=(
            views.Build(digest="sha256:engine", requires={"tensorrt": ">=10"}),
            views.Build(digest="sha256:plain", requires={"onnxruntime": ">=1.32,<2"}),
        ),
    )
    rich = Facts(runtimes={"onnxruntime": "1.33.1", "tensorrt": "11.4"})
    assert [getattr(choose_build(both, facts), "digest", None) for facts in (rich, GOOD_FACTS, None)] == [
        "sha256:engine",
        "sha256:plain",
        None,
    ]


def test_a_prerelease_runtime_newer_than_needed_is_enough() -> None:
    assert choose_build(version(), Facts(runtimes={"onnxruntime": "1.33.0.dev20261101"})) is not None


def test_a_requirement_nobody_can_read_fits_no_agent() -> None:
    assert choose_build(version(requires="a lot"), GOOD_FACTS) is None


@pytest.mark.parametrize(("soak_s", "timeout_s"), [(-1, 60), (30 * 86400 + 1, 60), (0, -1), (0, 7 * 86400 + 1)])
def test_times_out_of_range_are_refused(soak_s: int, timeout_s: int) -> None:
    with pytest.raises(InvalidInput, match=r"(soak|timeout) is -?\d+ s"):
        _plan(World(), soak_s=soak_s, timeout_s=timeout_s)


def test_no_timeout_is_the_default_one() -> None:
    assert _plan(World(), timeout_s=0).timeout_s == DEFAULT_TIMEOUT_S


def test_canaries_are_taken_from_agents_that_are_online() -> None:
    world = World(10)
    for name in "0123456":
        world.agents[name].online = False
    world.start("3,100%")
    assert set(world.order()[:3]) == {"7", "8", "9"}


def test_every_refusal_says_what_to_do() -> None:
    for attempt in (lambda: _plan(World(0)), lambda: _plan(World(), version(signed=False))):
        with pytest.raises(ControllerError) as caught:
            attempt()
        assert caught.value.remedy
        assert caught.value.code


OLD, NEW, OTHER = (
    Standing("flow-threat", "flow-threat:1", ""),
    Standing("flow-threat", "flow-threat:2", "site=s1"),
    Standing("plain", "plain:4", "site=s1"),
)


def test_a_late_joiner_gets_the_newest_version_of_each_model_whose_rollout_selects_it() -> None:
    assert owed([OTHER, NEW, OLD], lambda selector: True) == (OTHER, NEW)


def test_a_late_joiner_that_the_newest_does_not_select_gets_an_older_one() -> None:
    assert owed([OTHER, NEW, OLD], lambda selector: selector == "") == (OLD,)


def test_nothing_stands_when_no_rollout_selects_it() -> None:
    assert owed([OTHER, NEW], lambda selector: False) == ()


def test_a_plan_is_decided_before_anything_is_done() -> None:
    planned = _plan(World(3))
    assert len(machine.pending_actions(planned)) == 3
    assert all(member.sequence == 0 for member in planned.members)
