"""What a company is told that is to say or play something to a caller, and to hang up: as its own library writes it."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from plivo import plivoxml
from twilio.twiml.voice_response import VoiceResponse
from vonage_voice.models import NccoAction, Stream, Talk

from tests.providers.companies import load_provider
from wsvoice.call import Call
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers import PROVIDERS
from wsvoice.providers.base import BusyMessage, Callback, Command, WebhookRequest

#: Bandwidth's library passes tags on, as SSML.
TEXT = 'All lines are "busy" & we are sorry: ring again später.'
URL = "https://voice.example.com/busy/0123456789abcdef.wav"
MESSAGES = [BusyMessage(text=TEXT), BusyMessage(sound_url=URL)]

#: Who has nothing that could be told.
SILENT = {"exotel", "asterisk"}


def twiml(message: BusyMessage) -> str:
    response = VoiceResponse()
    if message.text:
        response.say(message.text)
    else:
        response.play(message.sound_url)
    response.hangup()
    return str(response)


def plivo_xml(message: BusyMessage) -> str:
    response = plivoxml.ResponseElement()
    first = plivoxml.SpeakElement(message.text) if message.text else plivoxml.PlayElement(message.sound_url)
    return str(response.add(first).add(plivoxml.HangupElement()).to_string())


def bxml(message: BusyMessage) -> str:
    from bandwidth.models.bxml import Hangup, PlayAudio, Response, SpeakSentence

    response = Response()
    response.add_verb(SpeakSentence(message.text) if message.text else PlayAudio(message.sound_url))
    response.add_verb(Hangup())
    return str(response.to_bxml())


#: TeXML is TwiML: https://developers.telnyx.com/docs/voice/programmable-voice/texml-fundamentals
WRITERS = {"twilio": twiml, "signalwire": twiml, "telnyx": twiml, "plivo": plivo_xml, "bandwidth": bxml}


def plain(document: str) -> list[tuple[str, str | None, dict[str, str]]]:
    return [(each.tag, each.text, each.attrib) for each in ElementTree.fromstring(document.encode())]


@pytest.mark.parametrize("message", MESSAGES, ids=["text", "sound"])
@pytest.mark.parametrize("name", WRITERS)
def test_the_document_is_that_of_the_companys_library(name: str, message: BusyMessage) -> None:
    answer = load_provider(name).busy(None, message)
    assert (answer.status, answer.media_type) == (200, "application/xml")
    assert plain(answer.body) == plain(WRITERS[name](message))


@pytest.mark.parametrize("message", MESSAGES, ids=["text", "sound"])
def test_the_ncco_is_that_of_vonages_library(message: BusyMessage) -> None:
    action: NccoAction = Talk(text=message.text) if message.text else Stream(streamUrl=[message.sound_url])
    answer = load_provider("vonage").busy(None, message)
    written = json.loads(action.model_dump_json(by_alias=True, exclude_none=True))
    assert (answer.status, answer.media_type, json.loads(answer.body)) == (200, "application/json", [written])


@pytest.mark.parametrize("message", MESSAGES, ids=["text", "sound"])
@pytest.mark.parametrize("name", sorted(PROVIDERS.keys() - SILENT))
def test_a_test_call_says_what_a_caller_would_hear(name: str, message: BusyMessage) -> None:
    provider = load_provider(name)
    answer = provider.busy(None, message)
    with pytest.raises(RemoteProtocolError) as caught:
        provider.read_answer(answer.body.encode(), answer.media_type)
    assert caught.value.kind == "rejected"
    assert caught.value.message == f"turned away: {message.text or message.sound_url}"


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_who_can_be_told_nothing_says_so(name: str) -> None:
    provider = load_provider(name)
    assert bool(provider.no_busy_message) is (name in SILENT)
    if name in SILENT:
        assert provider.busy(None, MESSAGES[0]) == provider.busy()


class TestCallControl:
    """Telnyx plays nothing before it has said that the call is answered."""

    call = Call("telnyx", "v3:abc", from_number="+15550100001", to_number="+15550100002", control="api")

    def provider(self) -> Any:
        return load_provider("telnyx", {"TELNYX_API_KEY": "KEY1"})

    def command(self, provider: Any, answer: Any) -> tuple[Any, Command]:
        (request,) = answer.requests
        asked = WebhookRequest(request.method, request.url, {"content-type": "application/json"}, request.body)
        command = provider.read_command(asked)
        assert command is not None
        return request, command

    def next_step(self, provider: Any, command: Command, message: BusyMessage | None) -> Any:
        webhook = provider.command_webhook(self.call, Callback("https://voice.example.com/"), command)
        return provider.go_on_with_busy(webhook, message)

    @pytest.mark.parametrize("message", MESSAGES, ids=["text", "sound"])
    def test_step_by_step(self, message: BusyMessage) -> None:
        provider = self.provider()
        answered, first = self.command(provider, provider.busy(self.call, message))
        told, second = self.command(provider, self.next_step(provider, first, message))
        ended, third = self.command(provider, self.next_step(provider, second, message))
        assert [each.kind for each in (first, second, third)] == ["answer", "message", "hang-up"]
        assert second.message == (message.text or message.sound_url)
        assert provider.read_answer_request(WebhookRequest("POST", answered.url, {}, answered.body)) is None
        self.compare(message, (answered, told, ended))

    def compare(self, message: BusyMessage, ours: tuple[Any, ...]) -> None:
        """Hold the requests against those of Telnyx's own library."""
        import telnyx

        taken: list[httpx.Request] = []

        def take(request: httpx.Request) -> httpx.Response:
            taken.append(request)
            return httpx.Response(200, json={"data": {"result": "ok"}})

        client = telnyx.Telnyx(api_key="KEY1", http_client=httpx.Client(transport=httpx.MockTransport(take)))
        actions, state = client.calls.actions, json.loads(ours[0].body)["client_state"]
        actions.answer(self.call.call_id, client_state=state)
        if message.text:
            voice = json.loads(ours[1].body)["voice"]
            actions.speak(self.call.call_id, payload=message.text, voice=voice, client_state=state)
        else:
            actions.start_playback(self.call.call_id, audio_url=message.sound_url, client_state=state)
        actions.hangup(self.call.call_id)
        for own, theirs in zip(ours, taken, strict=True):
            content = json.loads(own.body)
            assert content.pop("command_id")
            assert (own.method, content) == (theirs.method, json.loads(theirs.content or b"{}"))
            assert httpx.URL(own.url).path == theirs.url.path

    def test_a_message_that_is_gone_ends_the_call(self) -> None:
        provider = self.provider()
        _, answer = self.command(provider, provider.busy(self.call, MESSAGES[0]))
        _, command = self.command(provider, self.next_step(provider, answer, None))
        assert command.kind == "hang-up"

    @pytest.mark.parametrize("kind", ["call.answered", "call.speak.ended"])
    @pytest.mark.parametrize("state", [None, "", "bm90IG91cnM=", 7, ["x"]])
    def test_events_of_other_calls_change_nothing(self, kind: str, state: object) -> None:
        payload = {"call_control_id": "v3:abc", "client_state": state}
        body = json.dumps({"data": {"event_type": kind, "record_type": "event", "payload": payload}}).encode()
        request = WebhookRequest("POST", "https://voice.example.com/", {"content-type": "application/json"}, body)
        assert self.provider().go_on_with_busy(request, MESSAGES[0]) is None

    def test_without_a_key_nothing_is_sent(self) -> None:
        answer = load_provider("telnyx").busy(self.call, MESSAGES[0])
        assert answer.requests == ()
