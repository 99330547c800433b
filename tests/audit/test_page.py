"""The page of the audit: every verdict, what stands on it, what never does."""

import copy
import re
import shutil

import pytest

from fingerprint_jax.audit import network, page, panel, sentences, verdict
from fingerprint_jax.audit.patients import unit
from fingerprint_jax.report import charts
from tests.audit.documents import HOSTILE, RATES, audit, pictures
from tests.report.browser import Browser
from tests.report.conftest import Elements
from tests.report.conftest import pictures as decoded

CHROMIUM = shutil.which("chromium")
VERDICTS = {
    "copies found": "Copies among the synthetic images were found of 3 real images of 3 patients (3 used), at a false discovery"
    " rate of 5% of the patients. What was copied can be another image of the same patient.",
    "evidence of use": (
        "Used and not used patients were told apart (family-wise p = 0.001), and better than any control tells them apart: excess"
        " of the AUC 0.120 (95% interval 0.030 to 0.200). A difference of content that no control here sees would look the"
        " same, as of more groups of like images than images were given; and so would labels that were chosen with the synthetic"
        " images in sight."
    ),
    "a difference that content explains": (
        "Used and not used patients were told apart (family-wise p = 0.001), but their content may explain it: excess of the"
        " AUC over that of intensity 0.020 (95% interval \N{MINUS SIGN}0.050 to 0.090). Whether the images were used cannot be told"
        " from this."
    ),
    "no evidence": (
        "Used and not used patients were not told apart (family-wise p = 0.412). Detection limit: imprints of one image"
        " each of 5 of 100 used patients (1 in 20, verbatim) were noticed in 17 of 20 repeats (95% interval of the power 0.62 to"
        " 0.97), the easiest kind. Imprints of one image each of 50 of 100 used patients (1 in 2, at strength 0.5, blended with the"
        " nearest synthetic image) were noticed in 16 of 20 repeats (95% interval of the power 0.56 to 0.94), the hardest that was"
        " noticed. Not noticed with a power of 80%, even at the largest share that was tried: blend 0.25, patch. These imprints"
        " were planted. What a generator keeps of an image is often fainter, and of a fainter leak this limit promises nothing,"
        " even where every used image left one."
    ),
    "significant in the wrong direction": (
        "The patients given as not used have the higher scores (family-wise p = 0.002). Check labels and split."
    ),
    "cannot tell": "These images support no answer, neither that there is a leak nor how large one could be.",
}
SHORT = {
    "copies found": "Copies of 3 real images of 3 patients were found among the synthetic images.",
    "evidence of use": "The synthetic images lie nearer to the used patients than to the others, and no control explains it.",
    "a difference that content explains": (
        "Used and not used patients differ, but the content of their images may explain it: whether the generator kept any of them"
        " cannot be told."
    ),
    "no evidence": (
        "No trace of the used patients was found. A leak of 1 patient in 50 or fewer would probably have been missed, even one of"
        " the easiest kind (verbatim)."
    ),
    "significant in the wrong direction": (
        "Patients given as not used look more used than those given as used. Something may be mixed up."
    ),
    "cannot tell": "These images support no answer, neither that there is a leak nor that there is none.",
}
PARTS = ("panel", "controls", "copies", "limit")


def told(verdict: str) -> dict:
    document = audit(verdict)
    document["verdict"] |= {"short": sentences.short(document), "sentence": sentences.verdict_words(document)}
    return document


def written(folder, document: dict, redact: bool = False) -> str:
    shown = pictures() if document["copies"].get("flagged") else []
    return page.write(folder, document, shown, redact).read_text(encoding="utf-8")


def balanced(text: str) -> bool:
    """Whether every element is closed where it should be."""
    open_, void = [], {"meta", "img", "path", "circle", "polyline", "br"}
    for closing, name in re.findall(r"<(/?)([a-z][a-z0-9]*)\b[^<>]*>", text):
        if name in void:
            continue
        if not closing:
            open_.append(name)
        elif not open_ or open_.pop() != name:
            return False
    return not open_


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_said_in_these_words(verdict, tmp_path):
    document = told(verdict)
    assert document["verdict"]["sentence"] == VERDICTS[verdict] and document["verdict"]["short"] == SHORT[verdict]
    text = written(tmp_path, document)
    found = Elements(text)
    assert "Every image was taken for a patient." in found.text
    assert VERDICTS[verdict] in found.text and "This audit cannot show the absence of leakage." in found.text
    assert not re.search(r"\b(safe|private|compliant)\b", text, re.IGNORECASE)
    assert [a["id"] for a in found.all("h2")] == (
        ["verdict", "contents", "untested", "field", "asked", "primary", "controls", "limit", "copies", "patients", "again"]
    )


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_sentence_for_whoever_decides_comes_first_and_then_what_to_do(verdict, tmp_path):
    document = told(verdict)
    document["verdict"]["next"] = list(sentences.NEXT[verdict])
    text = Elements(written(tmp_path, document)).text
    places = [text.index(each) for each in (SHORT[verdict], *sentences.NEXT[verdict], sentences.FIXED, "On this page", "AUC")]
    assert places == sorted(places) and len(sentences.NEXT[verdict]) >= 2


def test_every_entry_of_the_contents_leads_to_a_heading(tmp_path):
    found = Elements(written(tmp_path, told("no evidence")))
    assert [a["href"][1:] for a in found.all("a")] == [a["id"] for a in found.all("h2")][2:]


def test_every_term_is_explained_where_it_first_stands(tmp_path):
    text = written(tmp_path, told("copies found"))
    text = text[text.index('id="primary"') :]
    terms = re.findall(r"<dfn>([^<]*)</dfn>", text)
    assert {"AUC", "p", "family-wise", "95% interval", "control", "imprint", "Power", "distance"} <= {*terms}
    for term in ("AUC", "family-wise", "Power"):
        first = re.search(term, text, re.IGNORECASE)
        assert first and text[: first.start()].endswith("<dfn>"), term


def test_who_asked_for_what_stands_on_the_page_as_text(tmp_path):
    document = told("no evidence")
    text = Elements(written(tmp_path, document)).text
    for name, shown in page.ABOUT.items():
        assert re.search(rf"{shown}\s*{re.escape(document['about'][name])}", text)
    document["about"] = {}
    assert "asked for by" not in Elements(written(tmp_path, document)).text


def test_what_is_asked_for_elsewhere_has_what_is_not_covered(tmp_path):
    text = Elements(written(tmp_path, told("no evidence"))).text
    for name in ("Pilgram et al., Patterns 2025", "Zamzmi et al. of the FDA", "EDPB, Opinion 28/2024"):
        assert name in text
    assert all(len(row) == 3 and all(row) for row in sentences.FIELD) and "fulfils none of these documents" in text


def test_the_plan_is_a_table_and_no_dump(tmp_path):
    text = written(tmp_path, told("no evidence"))
    assert "<pre" not in text and "&#34;statistic&#34;" not in text
    found = Elements(text).text
    assert re.search(r"statistic\s*max AUC", found) and re.search(r"options: gan leaks\s*k 1, calibrated True", found)
    assert re.search(r"imprints: kinds\s*verbatim, none; blend, 0.75", found) and re.search(r"patients: score\s*mean", found)


def test_a_leak_that_was_missed_only_now_and_then_may_have_been_missed():
    document, even = audit(), " have been missed, even one of the easiest kind (verbatim)."
    points = document["limit"]["kinds"][0]["points"]
    assert sentences.limit_in_a_sentence(document) == f"A leak of 1 patient in 50 or fewer would probably{even}"
    points[0]["power"] = 0.6
    assert sentences.limit_in_a_sentence(document) == f"A leak of fewer than 1 patient in 20 may{even}"
    document["counts"]["without_patient"] = document["counts"]["real"]
    assert sentences.limit_in_a_sentence(document) == f"A leak of fewer than 1 image in 20 may{even}"
    del points[0]  # the least share that was tried was noticed: nothing says that less is missed
    assert sentences.limit_in_a_sentence(document) == f"A leak of fewer than 1 image in 20 may{even}"
    for kind in document["limit"]["kinds"]:
        kind["smallest"] = None
    assert sentences.limit_in_a_sentence(document).startswith("A leak of any size may have been missed")
    document["limit"] = {"reason": "left out"}
    assert sentences.limit_in_a_sentence(document) == "How small a leak would have been noticed is not known."


def test_every_verdict_has_its_next_steps():
    assert set(sentences.NEXT) == set(verdict.EXIT_STATUS)


def test_where_no_patient_is_known_every_sentence_is_of_images(tmp_path):
    for name in VERDICTS:
        document = audit(name)
        document["counts"]["without_patient"] = document["counts"]["real"]
        document["verdict"]["patients"] = ""
        del document["plan"]["patients"]
        said = [
            sentences.short(document),
            sentences.verdict_words(document),
            *sentences.copies_words(document["copies"], document["counts"]),
        ]
        said += [sentences.asked_words(document), *sentences.panel_words(document["panel"], 0.05, "image")]
        of_copies = "another image of the same patient", "images of different patients"
        for sentence in said:
            for phrase in of_copies:
                sentence = sentence.replace(phrase, "")
            assert "patient" not in sentence, sentence
    assert "All figures are of images: no patient is known." in Elements(written(tmp_path, document)).text


def test_patients_and_images_are_counted_in_plain_words():
    document = audit("copies found")
    assert sentences.asked_words(document) == (
        "Asked about were 100 used images of 90 patients, 100 not used images of 90 patients. Beside them stand 2,000 reference"
        " images of 2,000 patients and 3,500 synthetic images."
    )
    assert sentences.score_words(document).endswith("one score, the mean of the scores of its images, as the plan says.")
    document["copies"]["flagged"][1]["group"] = document["copies"]["flagged"][0]["group"]
    assert sentences.short(document) == "Copies of 3 real images of 2 patients were found among the synthetic images."
    assert sentences.counted_rows(document["counts"])[0] == ("real images given as used", "90", "100")
    assert sentences.counted_rows(document["counts"] | {"without_patient": 2200})[0] == ("real images given as used", "", "100")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_page_stands_alone_and_can_be_read_aloud(verdict, tmp_path):
    text = written(tmp_path, told(verdict))
    found = Elements(text)
    assert balanced(text) and not balanced(text.replace("</section>", "", 1))
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("meta")[1]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not found.all("script") and not found.all("link") and not re.search(r"https?:|url\(|@import", text)
    assert len(found.all("img")) == (8 if verdict == "copies found" else 0)
    assert all(x["src"].startswith("data:image/png;base64,") and x["alt"] for x in found.all("img"))
    assert all(x.get("aria-label") for x in found.all("svg") if x.get("role") == "img")
    assert all(x["scope"] in ("row", "col") for x in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))


def test_it_says_what_each_attack_compares(tmp_path):
    document = told("evidence of use")
    found = Elements(written(tmp_path, document))
    names = [row["name"] for row in document["panel"]["methods"]]
    assert (
        {*names} == {*panel.METHODS}
        and {*panel.WORDS} == {*panel.METHODS}
        and {*network.WORDS} == {*network.ATTACKS, network.COMBINED}
    )
    for name in names:
        assert f"{name.replace('_', ' ')}: {panel.WORDS[name]}" in found.text
    assert "likelihood ratio:" not in found.text


def test_html_in_names_is_text(tmp_path):
    document = told("copies found")
    document["about"] = {name: f"{name} {HOSTILE}" for name in page.ABOUT}
    found = Elements(written(tmp_path, document))
    for name in (
        *document["about"].values(),
        f"used/{HOSTILE}1",
        f"patient1 {HOSTILE}",
        f"gen1{HOSTILE}",
        f"--generated='{HOSTILE}'",
    ):
        assert name in found.text
    assert not found.all("script") and not any("onerror" in name for _, attributes in found.tags for name in attributes)


def test_a_redacted_page_has_no_name_of_an_image_or_group_and_no_picture(tmp_path):
    document = told("copies found")
    document["command"] = "python -m fingerprint_jax.audit"
    assert len(decoded(written(tmp_path, document))) == 8
    text = written(tmp_path, document, redact=True)
    assert not decoded(text) and "<img" not in text and "data:image" not in text
    for name in ("used/", "patient1", "gen1", "alert", "&lt;"):
        assert name not in text
    found = Elements(text)
    assert "a synthetic image can be a copy of a real one" in found.text and VERDICTS["copies found"] in found.text
    assert found.text.count("no p-value") > 1 and "Patients with flagged images: 3 of 180 asked about." in found.text
    assert "0.025" in found.text  # distances stay


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_said(part, tmp_path):
    document = told("cannot tell")
    document[part] = {"reason": f"the {part} of {HOSTILE} could not be made"}
    if part in ("panel", "controls"):
        document["excess"] = None
    text = written(tmp_path, document)
    assert f"the {part} of {HOSTILE} could not be made." in Elements(text).text and balanced(text)


def test_what_was_asked_and_of_what(tmp_path):
    document = told("no evidence")
    text = Elements(written(tmp_path, document)).text
    assert "took 13 min 32 s:" in text and "Images of 64 x 64 px." in text and "given by whoever asked" in text
    assert re.search(r"synthetic images\s*3,500", text) and "No patient asked about is flagged." in text
    assert "attacks on the generator's weights" in text and "5f2c9a" in text
    document |= {"seconds": 7503.0, "reference_from": "half of not_used", "copies": {"reason": "no reference"}}
    text = Elements(written(tmp_path, document)).text
    assert "took 2 h 5 min:" in text and "half of the images not used, whole patients, stand in for them" in text
    assert "no copies were looked for" in text and "has a flagged image" not in text


def test_nothing_at_all_has_a_page(tmp_path):
    document = told("cannot tell") | {part: {"reason": "one class"} for part in PARTS} | {"excess": None, "groups": []}
    text = written(tmp_path, document)
    assert Elements(text).text.count("one class.") == 4 and "No excess over the controls could be formed." in text
    assert "<svg" not in text


def test_no_evidence_without_a_limit_says_so():
    document = audit()
    document["limit"]["kinds"] = document["limit"]["kinds"][-2:]
    expected = f"Detection limit: none of the imprints that were tried was noticed with a power of 80%. {sentences.PLANTED}"
    assert sentences.verdict_words(document).endswith(expected)
    document["limit"] = {"reason": "30 reference images are too few"}
    assert sentences.verdict_words(document).endswith(
        "How small a leak would have been noticed is not known: 30 reference images are too few."
    )


def test_the_primary_result_in_words():
    panel = audit("evidence of use")["panel"]
    assert sentences.panel_words(panel, 0.05, "patient") == [
        "Family-wise p = 0.001, the smallest that 999 permutations can give. It is that of the largest AUC of the methods, over 999"
        " permutations of the labels of whole patients.",
        "At a level of 0.05 used patients have higher scores than not used ones, by more than chance gives.",
        "In the wrong direction p = 0.99.",
    ]
    panel |= {"p": 0.06, "p_wrong_direction": 0.04, "split_groups": 2}
    assert sentences.panel_words(panel, 0.05, "patient") == [
        "Family-wise p = 0.06. It is that of the largest AUC of the methods, over 999 permutations of the labels of whole"
        " patients.",
        "At a level of 0.05 used patients do not have higher scores than not used ones, by more than chance gives.",
        "In the wrong direction p = 0.04: check labels and split.",
        "2 patients with images of both labels: each was permuted as two.",
    ]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.01, 0.2, "The interval lies above 0: the controls do not explain the difference."),
        (0.0, 0.2, "The interval holds 0: content may explain what difference there is."),
        (-0.2, -0.01, "The interval lies below 0: the control tells more than the attack."),
    ],
)
def test_the_excess_is_judged_by_its_interval(low, high, expected):
    text = sentences.excess_words({"value": 0.1, "interval": [low, high], "attack": "local_match", "control": "files"})
    assert text.startswith("Excess = AUC of local match less that of the largest control, files: 0.100 (95% interval ")
    assert text.endswith(expected)


def test_the_limit_comes_first_with_patients_repeats_interval_and_what_it_cannot_promise():
    limit, counts = audit()["limit"], audit()["counts"]
    first, *rest, last = sentences.limit_in_short(limit, counts)
    assert first == (
        "Detection limit: imprints of one image each of 5 of 100 used patients (1 in 20, verbatim) were noticed in 17 of 20 repeats"
        " (95% interval of the power 0.62 to 0.97), the easiest kind."
    )
    assert rest[0].endswith("(95% interval of the power 0.56 to 0.94), the hardest that was noticed.")
    assert rest[1].endswith("even at the largest share that was tried: blend 0.25, patch.") and last == sentences.PLANTED
    for kind in limit["kinds"]:
        kind["smallest"] = None
    text = "Detection limit: none of the imprints that were tried was noticed with a power of 80%."
    assert sentences.limit_in_short(limit, counts) == [text, sentences.PLANTED]
    assert "verbatim 0.25, shifted 0.25, blend 0.75 0.25" in sentences.nearness_words(limit)


def test_what_unknown_patients_do_to_the_p_is_said():
    counts = audit()["counts"]
    partly, none = sentences.patients_words(counts), sentences.patients_words(counts | {"without_patient": 2200})
    assert partly.startswith(
        "The patient of some images is not known (--groups): each of 5 of the 2,200 real images was taken for a patient"
    )
    assert none.startswith("No table of patients was given (--groups): every real image was taken for a patient of its own.")
    assert "the p is too small" in none and partly.endswith(none[none.index("Images of one patient") :])
    assert none.endswith(" 7 of them have a near duplicate in their own folder.")
    assert sentences.patients_words(counts | {"without_patient": 0}) == ""


def test_one_kind_that_was_noticed_is_not_the_hardest_too():
    document = audit()
    document["limit"]["kinds"] = document["limit"]["kinds"][:1]
    sentence = sentences.verdict_words(document)
    noticed = "were noticed in 17 of 20 repeats (95% interval of the power 0.62 to 0.97), the easiest kind."
    assert sentence.endswith(f"{noticed} {sentences.PLANTED}")
    document["plan"]["methods"] += ["likelihood_ratio", "combined"]
    assert sentences.verdict_words(document) == f"{sentence} These are repeats of the panel without the networks."


def test_a_share_is_that_of_whole_patients():
    limit = audit()["limit"]
    limit["used_patients"] = 20
    for kind in limit["kinds"]:
        for point, patients in zip(kind["points"], (1, 1, 2, 4, 10), strict=True):
            point["patients"] = patients
    assert sentences.one_in(limit) == {0.02: "1 in 20", 0.05: "1 in 20", 0.1: "1 in 10", 0.2: "1 in 5", 0.5: "1 in 2"}


def test_false_alarms_that_are_too_many_are_said():
    limit = audit()["limit"]
    assert sentences.null_words(limit, 0.05) == (
        "Without imprints the panel alarmed in 5 of 100 repeats: 0.050 (95% interval 0.016 to 0.113). It should be about 0.05,"
        " which the interval holds."
    )
    limit["null"] = {"detected": 30, "repeats": 100, "power": 0.3, "interval": [0.21, 0.4]}
    assert sentences.null_words(limit, 0.05).endswith("the interval does not hold: the curves are not to be trusted.")


def test_copies_in_words():
    found, counts = audit("copies found")["copies"], audit()["counts"]
    asked = "200 real images of 180 patients"
    assert sentences.copies_words(found, counts) == [
        f"Flagged as copies at a false discovery rate of 5% of the patients: 3 images of 3 patients, of {asked}.",
        "With 2,000 reference images of 2,000 patients the smallest p-value is 0.0005: it takes at least 2 such patients together"
        " for a finding; fewer cannot be flagged.",
        "The p-values hold where real images look like the reference. AUC of a classifier that tells them from it by layout and"
        " grain, 0.5 where it cannot: used 0.550 (95% interval 0.470 to 0.630), not used 0.480 (95% interval 0.400 to 0.560).",
        "Nearer to a synthetic image than any two reference images of different patients are to each other (0.210): 1 image of 1"
        " patient. This is a list to look at; it has no p-value.",
    ]
    few = found | {"reference": 10, "reference_groups": 10, "smallest_p": 1 / 11, "fewest": 181, "flagged": []}
    assert sentences.copies_words(few, counts)[:2] == [
        f"Flagged as copies at a false discovery rate of 5% of the patients: none, of {asked}.",
        f"With 10 reference images of 10 patients the smallest p-value is 0.0909: too large for any finding among {asked}. Only"
        " more reference patients can support one.",
    ]
    parts = few | {"smallest_p": 3 / 11}
    assert sentences.copies_words(parts, counts)[1] == (
        "With 10 reference images of 10 patients the smallest p-value is 0.273 (times 3, as each patient has many images beside the"
        f" reference patient with the fewest): too large for any finding among {asked}. Only more reference patients, or a"
        " reference without patients of few images, can support one."
    )
    assert sentences.copies_words(found | {"fewest": 1}, counts)[1].endswith("one such patient is enough for a finding.")
    unlike = found | {"against_reference": [{"name": "used", "auc": 0.9, "interval": [0.8, 1.0]}]}
    warned = "The reference looks different from images that are flagged: look-alikes are then flagged as well."
    assert sentences.copies_words(unlike, counts)[3] == warned and warned not in sentences.copies_words(
        unlike | {"flagged": []}, counts
    )


def test_equal_images_are_the_verdict():
    document = audit("copies found")
    flagged = document["copies"]["flagged"]
    document["exact"] = [dict(flagged[0], distance=0.0)]
    assert sentences.verdict_words(document) == (
        f"1 real image of 1 patient (1 {flagged[0]['class'].replace('_', ' ')}) stands pixel for pixel among the synthetic images."
        " Further 2 real images of 2 patients may be copied: see Copies."
    )


def test_flagged_images_are_named_by_every_other_verdict():
    document = audit("copies found")
    document["verdict"]["name"] = "no evidence"
    assert sentences.verdict_words(document).endswith(" All the same, 3 real images of 3 patients may be copied: see Copies.")


def test_a_limit_whose_false_alarms_are_too_many_is_not_quoted():
    document = audit("no evidence")
    document["limit"]["null"] = {"detected": 30, "repeats": 100, "power": 0.3, "interval": [0.21, 0.4]}
    sentence = sentences.verdict_words(document)
    assert sentence.endswith("is not known: without any leak the panel alarmed in 30 of 100 repeats.") and "1 in" not in sentence


def test_refused_files_in_words():
    assert sentences.refused_words({}) == []
    few, many = sentences.refused_words({"used": [5, 100], "reference": [6, 100]})
    assert few == "Of 100 files in the folder of real images given as used 5 could not be used; rejected.csv has the reasons."
    assert many.endswith("has the reasons. Whether the rest stands for the folder is to be looked at first.")


def test_a_long_list_is_cut_and_said_to_be(tmp_path):
    document = told("copies found")
    document["copies"]["flagged"] = [dict(document["copies"]["flagged"][0], id=f"number{k}.") for k in range(150)]
    found = Elements(written(tmp_path, document))
    assert "The first 100 of 150" in found.text and "number99." in found.text and "number100." not in found.text


def test_charts_tell_their_numbers():
    document = audit()
    forest = page.beside(document["panel"], document["controls"])
    assert forest is not None
    assert forest.words == [
        "attacks: gan leaks 0.625 (0.542 to 0.700), mosaic 0.590 (0.511 to 0.667), local match 0.761 (0.695 to 0.824), both"
        " directions 0.700 (0.630 to 0.770).",
        "controls: matched reference images: gan leaks 0.485 (0.408 to 0.567), mosaic 0.481 (0.401 to 0.562), local match 0.558"
        " (0.475 to 0.636), both directions 0.510 (0.430 to 0.590).",
        "controls: real images alone: gan leaks 0.530 (0.450 to 0.610), mosaic 0.520 (0.440 to 0.600), local match 0.470 (0.390"
        " to 0.550), both directions 0.510 (0.430 to 0.590).",
        "controls: content of the real images: files 0.500 (0.500 to 0.500), order 0.480 (0.400 to 0.560), intensity 0.600"
        " (0.520 to 0.680), texture 0.550 (0.470 to 0.630), layout 0.520 (0.440 to 0.600), coarse 0.540 (0.460 to"
        " 0.620), kernel 0.510 (0.430 to 0.590), likeness 0.530 (0.450 to 0.610).",
    ]
    drawn = page.power(document["limit"], unit(document["counts"]))
    assert drawn.words[0] == "verbatim: 0.20 at 1 in 50, 0.85 at 1 in 20, 1.00 at 1 in 10, 1.00 at 1 in 5, 1.00 at 1 in 2."
    assert drawn.words[-1] == "Dashed: 80%. Without imprints: 0.05."
    assert [text for _, text in drawn.x_ticks] == ["none", "1 in 50", "1 in 20", "1 in 10", "1 in 5", "1 in 2"]
    assert drawn.level == pytest.approx(charts.TOP + 0.2 * charts.HEIGHT)
    # Every line starts at the false alarms; its places are equally far apart.
    for series, kind in zip(drawn.series, document["limit"]["kinds"], strict=True):
        assert series.points[0] == (charts.LEFT, charts.TOP + 0.95 * charts.HEIGHT)
        assert [x for x, _ in series.points] == pytest.approx([charts.LEFT + k * charts.WIDE / 5 for k in range(6)], abs=0.06)
        heights = [1 - (y - charts.TOP) / charts.HEIGHT for _, y in series.points[1:]]
        assert heights == pytest.approx([point["power"] for point in kind["points"]], abs=0.001)
    assert len(RATES) == 5


def test_figures_lie_where_their_axis_says():
    part = [("mosaic", 0.6, [0.5, 0.7]), ("gan_leaks", 0.8, None)]
    drawn = charts.forest("t", "AUC", 0.5, [("attacks", part), ("controls", [("files", 0.4, [0.4, 0.4])])])
    position = {text: x for x, text in drawn.ticks}
    assert list(position) == ["0.4", "0.5", "0.6", "0.7", "0.8"]
    assert drawn.chance == position["0.5"]
    assert [position[text] for text in ("0.4", "0.6", "0.8")] == [244, 475, 706]  # the ends of the axis, and its middle
    (_, _, x, ends, look), (_, _, second, none, _), (_, _, third, point, other) = drawn.rows
    assert (x, ends) == (position["0.6"], [position["0.5"], position["0.7"]])
    assert (second, none, third, point) == (position["0.8"], None, position["0.4"], [position["0.4"]] * 2)
    assert look != other
    heights = [drawn.heads[0][0], drawn.rows[0][0], drawn.rows[1][0], drawn.heads[1][0], drawn.rows[2][0], drawn.height]
    assert heights == sorted(set(heights))
    # An axis is never without a width.
    assert [text for _, text in charts.forest("t", "AUC", 0.5, [("a", [("b", 0.5, None)])]).ticks] == [
        "0.4",
        "0.45",
        "0.5",
        "0.55",
        "0.6",
    ]


def test_an_unwritten_page_leaves_the_one_before(tmp_path):
    before = written(tmp_path, told("no evidence"))
    broken = copy.deepcopy(told("no evidence"))
    del broken["verdict"]["name"]
    with pytest.raises(KeyError):
        written(tmp_path, broken)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def contrast(a: str, b: str) -> float:
    """Of two colours `#rrggbb`, by WCAG 2.2."""

    def luminance(colour):
        colour = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_and_colours(tmp_path):
    assert contrast("#000", "#fff") == pytest.approx(21)
    text = written(tmp_path, told("no evidence"))
    palettes = [dict(re.findall(r"--(\w+): (#\w+)", line)) for line in re.findall(r":root \{(.*)\}", text)]
    assert len(palettes) == 3
    for palette in palettes:
        for paper in (palette["paper"], palette["panel"]):
            assert min(contrast(palette[name], paper) for name in ("ink", "soft")) >= 4.5
            assert min(contrast(palette[f"c{k}"], paper) for k in range(6)) >= 3


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH: apt-get install chromium")
def test_it_opens_in_a_browser_in_every_medium(tmp_path):
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path / "home") as browser:
        for verdict in ("copies found", "no evidence"):
            written(tmp_path, told(verdict))
            for medium in ({}, {"dark": True}, {"width": 400}, {"media": "print", "width": 700, "dark": True}):
                browser.log.clear()
                browser.open(tmp_path / "index.html", **medium)
                assert browser.value("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
                assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), medium
                # No text of a chart is outside it.
                assert (
                    browser.value(
                        "[...document.querySelectorAll('svg[role=img] text')].filter(t => {const a = t.getBoundingClientRect(),"
                        " b = t.ownerSVGElement.getBoundingClientRect(); return a.left < b.left - 3 || a.right > b.right + 3 ||"
                        " a.bottom > b.bottom + 3}).map(t => t.textContent).join('|')"
                    )
                    == ""
                )
                assert browser.log == []


def test_what_was_told_apart_is_never_said_not_to_be():
    document = audit("copies found") | {"exact": []}
    document["verdict"]["name"] = verdict.CANNOT_TELL  # the reference looks different
    document["panel"]["p"] = 0.5
    assert "not told apart" in sentences.verdict_words(document)
    document["panel"]["p"] = 0.001
    assert "not told apart" not in sentences.verdict_words(document)
