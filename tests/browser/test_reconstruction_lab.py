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
    assert notebook.kernel("pass\nviewer.reconstruction.codes.shape") == [8, 8]
