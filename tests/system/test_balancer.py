"""Several replicas behind a balancer: what one has written, the others serve."""

from pathlib import Path

import pytest
from tests.replicas import WHOLE, replicas
from tests.scripted import Script
from tests.serving import stream_id_of, text_of
from tests.valkey import Valkey

pytestmark = pytest.mark.one_process(WHOLE)


@pytest.mark.soak
def test_replicas_serve_each_others_users_and_streams_and_the_balancer_skips_the_dead(
    tmp_path: Path, postgres_url: str, valkey: Valkey
) -> None:
    with replicas(2, tmp_path, postgres_url, valkey, LEASE_SECONDS="1.5") as world:
        alice = world.customer("alice")
        session = alice.session()
        asked = {}
        for _ in range(3):
            events = alice.ask(session, "fake-n20-nousage")
            assert text_of(events) == Script(n=20).text()
            asked[stream_id_of(events)] = events
        for replica in range(2):
            direct = world.user("alice", replica=replica)
            for name, events in asked.items():
                assert direct.resume(name) == events, "S2: on any replica"
        world.kill(0)
        for _ in range(3):
            events = alice.ask(session, "fake-n3-nousage")
            asked[stream_id_of(events)] = events
        world.start(0)
        world.pause(1)
        world.until(lambda: world.balancer.well == {0})
        events = alice.ask(session, "fake-n3-nousage")
        asked[stream_id_of(events)] = events
        world.resume(1)
        world.until_well()
        assert sorted(world.check(asked)) == sorted(asked)
