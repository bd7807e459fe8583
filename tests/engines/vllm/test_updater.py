from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from driftproof.engines.vllm.updater import VllmUpdater
from driftproof.errors import EngineError
from tests.engines.vllm.stand_in import StandIn

ORDER = [
    "/pause",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/resume",
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTPROOF_TEST_KEY", "secret")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000007"
    path.mkdir()
    return path


def test_an_update_is_whole_and_keeps_requests(server: StandIn, snapshot: Path) -> None:
    updater = VllmUpdater(api_key_variable="DRIFTPROOF_TEST_KEY")
    asyncio.run(updater.update(server.url, snapshot))
    assert server.calls == ORDER
    # Requests are kept, and nothing is computed on from the cache of old weights.
    assert server.queries["/pause"] == {"mode": "keep", "clear_cache": "true"}
    assert server.weights == str(snapshot)
    assert server.version == "step-00000007"
    assert not server.paused
    assert set(server.headers) == {"Bearer secret"}
    assert updater.counters["weight_updates"] == 1
    assert updater.counters["weight_update_seconds"] > 0


def test_a_relative_path_and_a_link_reach_the_server_as_the_directory(
    server: StandIn, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot.parent / "latest").symlink_to(snapshot.name)
    monkeypatch.chdir(snapshot.parent)
    asyncio.run(VllmUpdater().update(server.url, Path("latest")))
    assert server.weights == str(snapshot)


def test_proxies_of_the_environment_are_passed_by(
    server: StandIn, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    asyncio.run(VllmUpdater().update(server.url, snapshot))
    assert server.version


@pytest.mark.parametrize("route", ORDER[:-1])
def test_a_failure_resumes_the_server_and_says_which_route(server: StandIn, snapshot: Path, route: str) -> None:
    server.trouble[route] = (500, "the disk is gone")
    updater = VllmUpdater()
    with pytest.raises(EngineError, match=rf"{route}.*500.*the disk is gone") as failure:
        asyncio.run(updater.update(server.url, snapshot))
    assert server.calls[-1] == "/resume"
    assert not server.paused
    assert ("--engine.launch true" in str(failure.value)) == (route == "/init_weight_transfer_engine")
    assert updater.counters["weight_updates"] == 0


def test_a_server_that_cannot_resume_is_an_error(server: StandIn, snapshot: Path) -> None:
    server.trouble["/resume"] = (500, "stuck")
    with pytest.raises(EngineError, match=r"/resume.*stuck"):
        asyncio.run(VllmUpdater().update(server.url, snapshot))


def test_a_server_that_closes_its_connection_after_a_failure_is_resumed(server: StandIn, snapshot: Path) -> None:
    server.trouble["/update_weights"] = (500, "no such tensor")
    server.drops = ["/resume"]
    with pytest.raises(EngineError, match="no such tensor") as failure:
        asyncio.run(VllmUpdater().update(server.url, snapshot))
    assert "could not be resumed" not in str(failure.value)
    assert not server.paused


def test_an_update_that_somebody_left_open_is_finished_first(server: StandIn, snapshot: Path) -> None:
    server.active = server.paused = True
    asyncio.run(VllmUpdater().update(server.url, snapshot))
    assert server.weights == str(snapshot)
    assert not server.active
    assert not server.paused


def test_a_server_without_the_routes_is_told_how_to_start(server: StandIn, snapshot: Path) -> None:
    server.trouble["/pause"] = (404, "Not Found")
    with pytest.raises(EngineError, match=r"has no /pause.*VLLM_SERVER_DEV_MODE=1"):
        asyncio.run(VllmUpdater().update(server.url, snapshot))


def test_a_refused_key_is_named_without_the_key(server: StandIn, snapshot: Path) -> None:
    server.trouble["/pause"] = (401, "Unauthorized")
    with pytest.raises(EngineError, match="API key") as failure:
        asyncio.run(VllmUpdater(api_key_variable="DRIFTPROOF_TEST_KEY").update(server.url, snapshot))
    assert "secret" not in str(failure.value)


def test_a_server_that_hangs_meets_the_time_limit_and_is_resumed(server: StandIn, snapshot: Path) -> None:
    server.before["/update_weights"] = server.closed.wait
    with pytest.raises(EngineError, match="/update_weights: no answer within 4 s"):
        asyncio.run(VllmUpdater(timeout_seconds=4.0).update(server.url, snapshot))
    assert not server.paused


def test_nobody_there(snapshot: Path) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9/pause: ConnectError"):
        asyncio.run(VllmUpdater().update("http://127.0.0.1:9", snapshot))


def test_a_snapshot_that_is_gone_is_not_the_servers_fault(server: StandIn, snapshot: Path) -> None:
    snapshot.rmdir()
    with pytest.raises(FileNotFoundError, match="step-00000007"):
        asyncio.run(VllmUpdater().update(server.url, snapshot))
    assert server.calls == []


def test_a_snapshot_that_is_removed_meanwhile(server: StandIn, snapshot: Path) -> None:
    server.trouble["/update_weights"] = (500, "no such file")
    server.before["/update_weights"] = snapshot.rmdir
    with pytest.raises(FileNotFoundError, match="was removed while"):
        asyncio.run(VllmUpdater().update(server.url, snapshot))
    assert not server.paused


class Verdict:
    """A canary that finds `difference`, or dies of it."""

    def __init__(self, difference: float) -> None:
        self.difference = difference

    async def check(self, client: httpx2.AsyncClient, server_url: str, snapshot: Path) -> float:
        assert (await client.get(f"{server_url}/health")).status_code == 200
        if self.difference > 1:
            raise EngineError(f"{snapshot.name} is not there")
        return self.difference


def test_the_canary_is_asked_after_resuming_and_its_largest_difference_kept(server: StandIn, snapshot: Path) -> None:
    updater = VllmUpdater(canary=Verdict(0.25))
    asyncio.run(updater.update(server.url, snapshot))
    updater.canary = Verdict(0.125)
    asyncio.run(updater.update(server.url, snapshot))
    assert server.calls == [*ORDER, "/health", *ORDER, "/health"]
    assert updater.counters["canary_difference"] == 0.25
    updater.canary = Verdict(2.0)
    with pytest.raises(EngineError, match="is not there"):
        asyncio.run(updater.update(server.url, snapshot))
    assert updater.counters["weight_updates"] == 2
