"""The chat cell in a bare page: what is seen, typed, spoken, and never run as HTML."""

import base64

import fakes
import pytest
from playwright.sync_api import expect

from chameleon_widgets import ChatCell
from chameleon_widgets.pictures import png


@pytest.fixture
def chat(mounted):
    fakes.gate.clear()
    fakes.closed.clear()
    bridge = mounted(lambda: ChatCell(fakes.stream, suggestions=["draw a red circle", "what can you do?"]))
    yield bridge
    fakes.gate.set()
    bridge.widget.stop()
    bridge.widget._worker.wait(10)


def box(chat):
    return chat.page.get_by_role("textbox", name="Message to the model")


def lamp(chat):
    return chat.page.locator(".chm-lamp")


def settled(chat, count=1):
    """The given number of replies is there, nothing is going on, and the page has heard of all that was."""
    ends, widget = chat.page.locator(".chm-foot:visible, .chm-alert:visible"), chat.widget
    chat.settle(lambda: ends.count() >= count and not (widget._pending or widget._worker.busy))


def test_a_picture_grows_row_by_row(chat, screenshots):
    page = chat.page
    page.screenshot(path=screenshots / "chat-start.png")
    box(chat).click()
    page.keyboard.type("hold a red circle left of a blue square")
    page.keyboard.press("Enter")
    chat.until(lambda: "row 6/8" in page.locator(".chm-progress").all_inner_texts())
    expect(lamp(chat)).to_have_text("Drawing row 6 of 8")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "chat-drawing.png")
    fakes.gate.set()
    settled(chat)
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text("A red circle left of a blue square.")
    page.evaluate("document.body.classList.add('dark')")
    page.screenshot(path=screenshots / "chat-done-dark.png")


def say(chat, text):
    box(chat).click()
    chat.page.keyboard.type(text)
    chat.page.keyboard.press("Enter")


def give(chat, how, name, kind, data=None):
    """Pastes or drops a file on the message box, as the browser would."""
    data = png(fakes.scene()) if data is None else data
    chat.page.evaluate(
        """([how, name, kind, text]) => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name, {type: kind}));
          const target = document.querySelector('.chm-input');
          target.dispatchEvent(how === 'paste'
            ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
            : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [how, name, kind, base64.b64encode(data).decode()],
    )


def test_enter_sends_shift_enter_breaks_the_line_and_no_key_leaves_the_widget(chat):
    page = chat.page
    page.evaluate("window.leaked = []; document.addEventListener('keydown', event => leaked.push(event.key))")
    box(chat).click()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    settled(chat)
    assert chat.widget.document.segments[0].text == "one\ntwo"
    expect(box(chat)).to_have_text("")
    expect(box(chat)).to_be_focused()
    assert page.evaluate("leaked") == []


@pytest.mark.parametrize("prompt", ["hold a red circle", "wait for it"])
def test_escape_stops_at_once_in_a_picture_and_before_the_first_word(chat, prompt, screenshots):
    page = chat.page
    say(chat, prompt)
    busy = "Drawing row 6 of 8" if prompt.startswith("hold") else "Reading"
    chat.until(lambda: lamp(chat).inner_text() == busy)
    page.keyboard.press("Escape")
    chat.until(lambda: lamp(chat).inner_text() == "Stopped")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / f"chat-stopped-{prompt[:4]}.png")
    fakes.gate.set()
    settled(chat)
    assert fakes.closed == ["closed early"]


def test_text_is_never_html(chat):
    page = chat.page
    evil = '<img src=x onerror="document.title=1"><b>bold</b><script>document.title=2</script>'
    say(chat, evil)
    settled(chat)
    expect(page.locator(".chm-bubble")).to_have_text(evil)
    expect(page.locator(".chm-reply")).to_contain_text(evil)
    assert page.title() == "" and page.locator(".chm-log b, .chm-log script, .chm-log img").count() == 0


def test_the_transcript_is_a_polite_log_that_speaks_in_whole_sentences(chat):
    page = chat.page
    log = page.get_by_role("log", name="Conversation")
    expect(log).to_have_attribute("aria-live", "polite")
    say(chat, "long talk")
    tail = page.locator(".chm-reply .chm-text [aria-hidden=true]")
    chat.until(lambda: "number 3" in log.inner_text())
    spoken = page.locator(".chm-reply .chm-text span:not([aria-hidden])").inner_text().strip()
    assert spoken.endswith("."), "only whole sentences are read aloud while more are coming"
    settled(chat)
    expect(tail).to_have_text("")


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_picture_goes_in_at_the_caret(chat, how, screenshots):
    page = chat.page
    box(chat).click()
    page.keyboard.type("what is ")
    give(chat, how, "scene.png", "image/png")
    chip = page.locator(".chm-chip")
    expect(chip).to_have_count(1)
    page.keyboard.type(" here?")
    page.screenshot(path=screenshots / f"chat-{how}.png")
    page.keyboard.press("Enter")
    settled(chat)
    before, picture, after = chat.widget.document.segments[:3]
    assert (before.text, after.text) == ("what is", "here?")
    assert picture.picture.size == (64, 64)
    expect(page.get_by_role("img", name="Your picture")).to_be_visible()


def test_an_attached_picture_can_be_chosen_and_removed(chat, tmp_path):
    page = chat.page
    (tmp_path / "big.png").write_bytes(png(fakes.scene().resize((3000, 1500))))
    page.locator(".chm-composer input[type=file]").set_input_files(tmp_path / "big.png")
    page.get_by_role("button", name="Remove this picture").click()
    expect(page.locator(".chm-chip")).to_have_count(0)
    page.locator(".chm-composer input[type=file]").set_input_files(tmp_path / "big.png")
    expect(page.locator(".chm-chip")).to_have_count(1)
    page.get_by_role("button", name="Send", exact=True).click()
    settled(chat)
    assert chat.widget.document.segments[0].picture.size == (1024, 512), "made smaller before it is sent"


@pytest.mark.parametrize(("name", "kind"), [("notes.txt", "text/plain"), ("broken.png", "image/png")])
def test_a_file_that_is_no_picture_is_named_in_the_widget(chat, name, kind, screenshots):
    give(chat, "drop", name, kind, b"these are words")
    expect(chat.page.get_by_role("alert")).to_contain_text(f"“{name}” is not a picture")
    chat.page.screenshot(path=screenshots / "chat-bad-picture.png")
    expect(chat.page.locator(".chm-chip")).to_have_count(0)


def test_an_error_is_told_and_loses_nothing(chat, screenshots):
    page = chat.page
    say(chat, "fail please")
    settled(chat)
    expect(page.get_by_role("alert")).to_contain_text(
        "RuntimeError: the model broke in the middle of a word <b>bold</b>"
    )
    expect(lamp(chat)).to_have_text("Error")
    expect(page.locator(".chm-bubble")).to_have_text("fail please")
    expect(page.locator(".chm-reply")).to_contain_text("I was about to say")
    page.screenshot(path=screenshots / "chat-error.png")
    page.get_by_role("button", name="Edit this message").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("draw instead")
    page.keyboard.press("Enter")
    chat.until(lambda: page.get_by_role("img", name="Picture drawn by the model").count())
    settled(chat)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_edit_and_regenerate_make_branches_that_one_walks_back_to(chat, screenshots):
    page = chat.page
    for number, text in enumerate(("one", "two"), 1):
        say(chat, text)
        settled(chat, number)
    expect(page.get_by_role("tree")).to_be_hidden()
    page.locator(".chm-exchange").first.hover()
    page.get_by_role("button", name="Edit this message").first.click()
    expect(page.get_by_role("textbox", name="Edit your message")).to_be_focused()
    page.screenshot(path=screenshots / "chat-edit.png")
    page.keyboard.type(" more")
    page.get_by_role("group", name="Edit your message").get_by_role("button", name="Send").click()
    bubbles = page.locator(".chm-bubble")
    chat.until(lambda: bubbles.all_inner_texts() == ["one more"])
    settled(chat)
    seed = page.locator(".chm-about").inner_text()
    page.get_by_role("button", name="Regenerate").dblclick()  # does it once
    chat.until(
        lambda: page.locator(".chm-about:visible").count() and page.locator(".chm-about").inner_text() not in ("", seed)
    )
    settled(chat)
    assert len(chat.widget.document.turns) == 2
    expect(page.get_by_role("group", name="reply 2 of 2")).to_be_visible()
    page.screenshot(path=screenshots / "chat-branches.png")

    page.get_by_role("button", name="Earlier reply").focus()
    page.keyboard.press("ArrowLeft")
    chat.until(lambda: page.locator(".chm-about").inner_text() == seed)
    expect(page.get_by_role("button", name="Later reply")).to_be_focused()  # the other one leads nowhere now
    page.get_by_role("button", name="Earlier wording").click()
    chat.until(lambda: bubbles.all_inner_texts() == ["one", "two"])

    page.get_by_role("tree").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    chat.until(lambda: bubbles.all_inner_texts() == ["one more"])
    expect(page.locator(".chm-tree circle[data-key]")).to_have_count(4)
    expect(page.locator(".chm-tree circle.chm-on")).to_have_count(1)


def test_settings_show_what_will_be_used_and_reach_the_next_reply(chat, screenshots):
    page = chat.page
    page.get_by_role("button", name="Settings").click()
    slider = page.get_by_role("slider", name="Temperature")
    expect(slider).to_be_focused()
    expect(slider).to_have_value("0.9")
    expect(page.locator(".chm-setting output").first).to_have_text("0.90")
    expect(page.locator(".chm-setting .chm-hint").first).to_contain_text("the model's own")
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".chm-setting output").first).to_have_text("0.80")
    page.get_by_role("checkbox", name="new seed each time").uncheck()
    page.get_by_role("spinbutton", name="Seed").fill("42")
    page.keyboard.press("Tab")
    page.screenshot(path=screenshots / "chat-settings.png")
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Settings")).to_be_hidden()
    chat.until(lambda: chat.widget.settings == {"temperature": 0.8, "top_p": None, "guidance": None, "seed": 42})
    say(chat, "hello")
    settled(chat)
    expect(page.locator(".chm-about")).to_contain_text("seed 42 · temperature 0.8")
    page.get_by_role("button", name="How it was made").click()
    expect(page.locator(".chm-facts")).to_contain_text("top-p0.95guidance3")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Temperature: the model's own").click()
    expect(slider).to_have_value("0.9")
    chat.until(lambda: chat.widget.settings["temperature"] is None)


def test_the_conversation_can_be_saved_loaded_and_begun_anew_and_nothing_is_lost(chat, tmp_path):
    page = chat.page
    say(chat, "draw it")
    settled(chat)
    page.get_by_role("button", name="Regenerate").click()
    settled(chat, 1)
    downloads = []
    page.on("download", lambda download: downloads.append(download))
    page.get_by_role("button", name="Save and load").click()
    page.get_by_role("button", name="All branches (JSON)").click()
    chat.until(lambda: downloads)
    downloads[0].save_as(tmp_path / "conversation.json")
    before = chat.widget.document
    page.get_by_role("button", name="New conversation").click()
    chat.until(lambda: page.locator(".chm-exchange").count() == 0)
    expect(page.get_by_text("Ask for a picture, or show one.")).to_be_visible()

    page.locator(".chm-files input[type=file]").set_input_files(tmp_path / "conversation.json")
    chat.until(lambda: page.locator(".chm-exchange").count() == 1)
    assert chat.widget.document == before
    expect(page.locator(".chm-tree circle[data-key]")).to_have_count(4)
    (tmp_path / "broken.json").write_text("<b>no</b>")
    page.locator(".chm-files input[type=file]").set_input_files(tmp_path / "broken.json")
    chat.until(lambda: "not JSON" in page.get_by_role("alert").inner_text())
    expect(page.locator(".chm-exchange")).to_have_count(1)


def test_a_suggestion_is_sent_by_a_click(chat):
    chat.page.get_by_role("button", name="draw a red circle").click()
    settled(chat)
    assert chat.widget.document.segments[0].text == "draw a red circle"


def test_without_an_answer_the_cell_says_so_and_keeps_the_message(chat, screenshots):
    page = chat.page
    say(chat, "hello")
    settled(chat)
    chat.alive = False
    say(chat, "are you there?")
    chat.until(lambda: lamp(chat).inner_text().startswith("Disconnected"))
    expect(page.get_by_role("alert")).to_contain_text("Your message stays here")
    expect(box(chat)).to_have_text("are you there?")
    page.screenshot(path=screenshots / "chat-disconnected.png")
    chat.alive = True
    chat.until(lambda: lamp(chat).inner_text() == "Ready")


def test_all_of_it_can_be_reached_by_keyboard(chat):
    page = chat.page
    say(chat, "draw it")
    settled(chat)
    reached = set()
    page.locator(".chm-log").focus()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''"))
    for name in (
        "Edit this message",
        "Save this picture",
        "Copy the text",
        "Regenerate",
        "Draw 4 to choose from",
        "Add a picture",
        "Message to the model",
    ):
        assert name in reached, name


@pytest.fixture
def telling(mounted):
    """A chat with a model that tells its tokens, can begin with some, and takes a modality."""
    fakes.gate.clear()
    bridge = mounted(
        lambda: ChatCell(
            fakes.telling_stream,
            defaults={"seed": 3},
            note="It knows nothing but numbered words.",
            see=lambda picture: picture.convert("L").convert("RGB"),
        )
    )
    yield bridge
    fakes.gate.set()
    bridge.widget.stop()
    bridge.widget._worker.wait(10)


def test_a_stopped_picture_is_continued_where_it_was(telling, screenshots):
    page = telling.page
    expect(page.get_by_text("It knows nothing but numbered words.")).to_be_visible()
    say(telling, "hold it")
    telling.until(lambda: lamp(telling).inner_text() == "Picture 20/64 · room left 477")
    page.keyboard.press("Escape")
    fakes.gate.set()
    settled(telling)
    proceed = page.get_by_role("button", name="Continue this reply")
    telling.until(lambda: proceed.count() == 1)  # a stop shows at once; that the stream has ended comes after it
    page.screenshot(path=screenshots / "chat-continue.png")
    proceed.click()
    telling.until(lambda: page.get_by_role("img", name="Picture drawn by the model").count())
    settled(telling)
    expect(page.locator(".chm-about")).to_contain_text("continued after 24 tokens")
    expect(page.get_by_role("group", name="reply 2 of 2")).to_be_visible()
    expect(page.get_by_role("button", name="Continue this reply")).to_be_hidden()
    page.get_by_role("button", name="Earlier reply").click()
    telling.until(lambda: page.get_by_role("img", name="Picture left unfinished, 2 of 8 rows").count())


def test_the_best_of_four_is_chosen_by_keyboard_and_the_others_stay(telling, screenshots):
    page = telling.page
    say(telling, "draw")
    settled(telling)
    page.get_by_role("button", name="Draw 4 to choose from").click()
    strip = page.get_by_role("group", name="Replies to choose from")
    telling.until(lambda: strip.get_by_role("img", name="Picture drawn by the model").count() == 4)
    telling.until(lambda: not telling.widget._pending)
    page.screenshot(path=screenshots / "chat-strip.png")
    page.set_viewport_size({"width": 600, "height": 900})
    page.screenshot(path=screenshots / "chat-strip-600.png")
    page.get_by_role("button", name="Choose 1").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    telling.until(lambda: strip.count() == 0)
    expect(page.get_by_role("group", name="reply 4 of 5")).to_be_visible()
    expect(page.locator(".chm-about")).to_contain_text("seed 5")
    assert [each.settings["seed"] for each in telling.widget._conversation.exchanges] == [3, 3, 4, 5, 6]


def test_what_a_reply_may_hold_is_chosen_beside_the_message(telling, screenshots):
    page = telling.page
    page.get_by_label("What the reply may hold").select_option(label="Words only")
    give(telling, "paste", "scene.png", "image/png")
    expect(page.locator(".chm-chip")).to_have_count(1)
    say(telling, "look")
    settled(telling)
    assert not page.get_by_role("img", name="Picture drawn by the model").count()
    telling.until(lambda: page.get_by_role("img", name="Your picture as the model sees it").count())
    expect(page.locator(".chm-about")).to_contain_text("modality words")
    page.evaluate("document.body.classList.add('dark')")
    page.screenshot(path=screenshots / "chat-as-the-model-sees-it.png")
