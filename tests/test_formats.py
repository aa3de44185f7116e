"""PNG, PDF and SVG: text that is text, fonts inside, and the same file for the same picture."""

import base64
import io
import re
from xml.etree import ElementTree

import pytest
from fontTools.ttLib import TTFont
from plot_store import MODEL, STEM, history
from pypdf import PdfReader

from sae_mlflow.config_load import load_settings
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.plot import plot_all_layers_comparison, plot_sae_training_history
from sae_mlflow.plots.formats import parse_formats


def drawn(folder, formats="png,pdf,svg", style=None, model=MODEL):
    files = plot_sae_training_history(history(3), model, 10, folder, style=style, formats=formats)
    return {file.suffix: file for file in files}


def svg_texts(file) -> list[str]:
    tree = ElementTree.parse(file)
    return ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def svg_styles(file) -> list[str]:
    tree = ElementTree.parse(file)
    return [text.get("style") for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def svg_fonts(file) -> dict[tuple[str, str], TTFont]:
    """The fonts inside, by family and weight."""
    rules = re.findall(
        r"@font-face \{font-family: '([^']+)'; font-weight: (\d+);.*?base64,([^)]+)\)",
        file.read_text(encoding="utf-8"),
    )
    return {
        (family, weight): TTFont(io.BytesIO(base64.b64decode(data)))
        for family, weight, data in rules
    }


def pdf_fonts(file) -> dict[str, bool]:
    """The fonts of the first page, and whether each is inside the file."""
    fonts = PdfReader(file).pages[0]["/Resources"]["/Font"]
    found = {}
    for reference in fonts.values():
        font = reference.get_object()
        for one in (d.get_object() for d in font.get("/DescendantFonts", [font])):
            found[str(one["/BaseFont"])] = "/FontFile2" in one["/FontDescriptor"]
    return found


def test_each_format_is_a_file_of_the_same_name(tmp_path):
    files = drawn(tmp_path)
    assert [file.name for file in files.values()] == [
        f"{STEM}_layer10_training_history.{ending}" for ending in ("png", "pdf", "svg")
    ]
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    assert files[".png"].read_bytes().startswith(b"\x89PNG")
    assert files[".pdf"].read_bytes().startswith(b"%PDF")


def test_the_text_of_a_pdf_is_text_and_its_fonts_are_inside(tmp_path):
    file = drawn(tmp_path, "pdf")[".pdf"]
    text = PdfReader(file).pages[0].extract_text()
    for words in (MODEL, "Reconstruction loss", "active latents per token", "epoch", "final 0.2"):
        assert words in text
    fonts = pdf_fonts(file)
    assert len(fonts) >= 2 and all(fonts.values())
    assert all("DejaVuSans" in name for name in fonts)


def test_the_text_of_an_svg_is_text_and_its_fonts_are_inside(tmp_path, caplog):
    file = drawn(tmp_path, "svg")[".svg"]
    texts = svg_texts(file)
    assert {f"{MODEL} · layer10", "Reconstruction loss", "final 0.2", "epoch"} <= set(texts)
    fonts = svg_fonts(file)
    assert set(fonts) == {("DejaVu Sans", "400"), ("DejaVu Sans", "700")}
    regular = fonts["DejaVu Sans", "400"].getBestCmap()
    assert {ord(letter) for letter in "final 0.2epoch"} <= set(regular)
    assert len(regular) < 100, "only the letters that are used"
    assert file.stat().st_size < 150_000
    assert caplog.text == "", "nothing that would be printed"


def test_an_svg_asks_for_the_fonts_that_are_inside_it(tmp_path):
    file = drawn(tmp_path, "svg", style="paper")[".svg"]
    families = {family for family, _ in svg_fonts(file)}
    assert "STIXGeneral" in families
    asked = re.findall(r"font-family: '([^']+)'", "".join(svg_styles(file)))
    assert asked and set(asked) <= families


def test_a_letter_that_the_first_font_lacks_is_taken_from_the_next(tmp_path):
    """DejaVu Sans, the last resort, has Georgian; STIXGeneral hasn't."""
    histories = {1: history(2)}
    style = tmp_path / "s.yaml"
    style.write_text("fonts: {family: [STIXGeneral]}")
    (file,) = plot_all_layers_comparison(histories, "ქართული", tmp_path, style=style, formats="svg")
    fonts = svg_fonts(file)
    assert ord("ქ") in fonts["DejaVu Sans", "700"].getBestCmap()
    assert ord("ქ") not in fonts["STIXGeneral", "700"].getBestCmap()


def test_markup_in_a_models_name_stays_text(tmp_path):
    file = drawn(tmp_path, "svg", model="<b>&$x_1$")[".svg"]
    assert "<b>&$x_1$ · layer10" in svg_texts(file)


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_picture_is_the_same_file(tmp_path, ending):
    (one,) = drawn(tmp_path / "1", ending).values()
    (two,) = drawn(tmp_path / "2", ending).values()
    assert one.read_bytes() == two.read_bytes()


def test_formats_are_named_where_one_is_not_known():
    assert parse_formats("pdf, .SVG,pdf") == ("pdf", "svg")
    with pytest.raises(UserError, match="no format 'sgv'. Did you mean svg.*png, pdf, svg"):
        parse_formats("png,sgv")
    with pytest.raises(UserError, match="No format is named. There are: png, pdf, svg"):
        parse_formats(",")


def test_formats_of_a_training_are_checked_when_its_settings_are_read():
    settings = load_settings("sae_quick", parse_set("plots.formats=png,pdf"))
    assert settings.plots.formats == ("png", "pdf")
    with pytest.raises(UserError, match="plots.formats.* 'png', 'pdf' or 'svg'"):
        load_settings("sae_quick", parse_set("plots.formats=png,jpg"))
