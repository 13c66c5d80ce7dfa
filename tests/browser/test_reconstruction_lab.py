"""The reconstruction viewer in a real JupyterLab with a real kernel."""

from playwright.sync_api import expect

VIEWER = """from chameleon_widgets import ReconstructionViewer
samples = {"red and blue": fakes.scene(), "green and yellow": fakes.scene("#2e9e4f", "#e0b020")}
viewer = ReconstructionViewer(fakes.Codec(), samples=samples)
viewer"""


def test_samples_and_files_go_through_the_tokenizer(open_notebook, screenshots, tmp_path):
    notebook = open_notebook(["import fakes", VIEWER])
    notebook.run_all()
    page = notebook.page
    expect(page.locator(".chm-facts")).to_contain_text("64 × 9 bits = 72 bytes")
    page.get_by_role("button", name="green and yellow").click()
    expect(page.get_by_role("button", name="green and yellow")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Show the grid of codes").click()
    page.get_by_role("button", name="Show where the pictures differ").click()
    page.get_by_role("gridcell", name="Row 4, column 2, code").hover()
    expect(page.locator(".chm-readout")).to_contain_text("Row 4, column 2: code ")
    page.screenshot(path=screenshots / "lab-viewer.png")
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "lab-viewer-dark.png")
    (tmp_path / "broken.png").write_bytes(b"these are words")
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("“broken.png” is not a picture")
    expect(page.locator(".chameleon-still")).to_contain_text("green and yellow: 64 codes × 9 bits")
    notebook.expect("pass\nviewer.reconstruction.codes.shape", [8, 8])


COMPARED = """from chameleon_lab.corpora.hard_cases import hard_cases
from chameleon_widgets import ReconstructionViewer
viewer = ReconstructionViewer({"one": fakes.Codec(), "other": fakes.Codec()}, samples=hard_cases(64))
viewer"""


def test_a_comparison_is_copied_and_leaves_a_still_that_outlives_the_kernel(open_notebook, screenshots):
    notebook = open_notebook(["import fakes", COMPARED])
    notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook.run_all()
    page = notebook.page
    page.get_by_role("combobox", name="Compare with").select_option("other")
    expect(page.locator(".chm-facts")).to_have_count(2)
    page.get_by_role("button", name="Wipe between").click()
    page.get_by_role("slider").first.press("Shift+ArrowRight")
    expect(page.get_by_role("slider").last).to_have_attribute("aria-valuenow", "60")
    page.screenshot(path=screenshots / "lab-viewer-compared.png")
    page.get_by_role("button", name="Copy the reconstruction").last.click()
    expect(page.locator(".chm-done")).to_have_count(1)
    size = page.evaluate(
        """async () => {
          const [item] = await navigator.clipboard.read();
          const picture = await createImageBitmap(await item.getType('image/png'));
          return [picture.width, picture.height];
        }"""
    )
    assert size == [64, 64]
    expect(page.locator(".chameleon-still")).to_contain_text("other: 64 codes × 9 bits")
    expect(page.locator(".chameleon-still")).to_be_hidden()
    notebook.save()
    notebook.shutdown()

    later = notebook.reopen()
    still = later.locator(".chameleon-still")
    expect(still.get_by_text("other: 64 codes × 9 bits")).to_be_visible()
    expect(still.locator("img")).to_have_count(3)
    expect(later.locator(".chm-stage")).to_have_count(0)
    later.screenshot(path=screenshots / "lab-viewer-still.png")
