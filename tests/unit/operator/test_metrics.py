# SPDX-License-Identifier: Apache-2.0
"""The seal as gauges: one line for each model, from what is watched anyway."""

from __future__ import annotations

import aiohttp

from sovereign_operator.metrics import exposition, served
from tests.unit.operator.probed_worlds import a_proven_universe
from tests.unit.operator.worlds import START, Universe


def test_a_proven_seal_is_one_with_its_reason_and_its_time() -> None:
    text = exposition([a_proven_universe().body])
    labels = 'namespace="models",model="mixtral"'
    assert f'sovereign_egress_sealed{{{labels},reason="Sealed"}} 1\n' in text
    assert f"sovereign_egress_probe_timestamp_seconds{{{labels}}} {int(START.timestamp())}\n" in text


def test_what_was_never_probed_is_zero_and_has_no_time() -> None:
    universe = Universe()
    universe.settle()
    text = exposition([universe.body])
    assert 'reason="NotProbed"} 0\n' in text
    assert "timestamp_seconds{" not in text


def test_models_come_in_a_fixed_order_and_one_without_a_status_is_left_out() -> None:
    one, other = a_proven_universe().body, a_proven_universe().body
    other["metadata"]["namespace"] = "earlier"
    bare = {"metadata": {"namespace": "models", "name": "bare"}}
    text = exposition([one, bare, other])
    assert text == exposition([other, one, bare])
    assert "bare" not in text
    assert text.index('"earlier"') < text.index('"models"')


def test_a_label_cannot_end_its_line() -> None:
    body = a_proven_universe().body
    for condition in body["status"]["conditions"]:
        condition["reason"] = 'x"} 1\nforged 1\\'
    assert "\nforged" not in exposition([body])


async def test_it_is_served_where_the_configuration_says() -> None:
    body = a_proven_universe().body
    async with served("127.0.0.1:0", lambda: [body]) as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert 'reason="Sealed"' in await answer.text()
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 404
    async with served("", lambda: [body]) as port:
        assert port == 0
