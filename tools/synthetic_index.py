"""Write index files of every data source, at full size or a fraction, with made-up contents.

`python tools/synthetic_index.py ROOT [--scale 0.01] [--films]` gives folders whose columns and file names
are the real ones and whose counts are RadVLM's (uzh-dqbm-cmi/RadVLM, README); recipes/radvlm.yaml must then
count 1,115,021 pairs. Nothing is copied from any collection: ids, reports, labels and boxes are drawn here.
`--films` adds small made-up films, for tests.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

FULL = {
    "mimic frontal": 237_912,
    "mimic reports": 230_980,
    "mimic other": 139_198,
    "imagenome": 162_794,
    "mscxr films": 862,
    "mscxr phrases": 971,
    "chexpert": 191_027,
    "chexpert lateral": 32_387,
    "plus": 186_463,
    "vindr films": 15_000,
    "vindr findings": 16_089,
    "padchest films": 2_225,
    "padchest phrases": 4_478,
    "nih": 112_120,
    "open-i": 3_851,
}
"""Training films or items of each index; `mimic other` are lateral and held-out films."""
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
    "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
    "Pneumothorax", "Support Devices",
)  # fmt: skip
CELLS = ("", "", "", "1.0", "0.0", "-1.0")
REPORTS = (
    "There is a small right pleural effusion. The heart is normal in size. No pneumothorax.",
    "Mild cardiomegaly. Compared to the prior study, mild edema is again seen. No focal consolidation.",
    "Lungs are clear. No effusion or pneumothorax. The mediastinal contours are normal.",
    "Patchy opacity at the left base may reflect atelectasis. An endotracheal tube ends above the carina.",
    "1. Moderate left pleural effusion. 2. Bibasilar atelectasis. 3. Findings were discussed with Dr. ___.",
)
REPORTED: tuple[dict[str, str], ...] = (
    {"Pleural Effusion": "1.0", "Fracture": "0.0"},
    {"Cardiomegaly": "1.0", "Edema": "1.0", "Fracture": "0.0"},
    {"No Finding": "1.0"},
    {"Atelectasis": "-1.0", "Lung Opacity": "1.0", "Support Devices": "1.0"},
    {"Pleural Effusion": "1.0", "Atelectasis": "1.0"},
)
"""Labels of each of REPORTS."""
EMPTY = "No significant interval change since the prior study."
"""A report of which the filter leaves nothing."""
REGIONS = ("right lung", "left lung", "cardiac silhouette", "right costophrenic angle", "mediastinum")
CLASSES = ("Aortic enlargement", "Cardiomegaly", "ILD", "Nodule/Mass", "Pleural effusion", "Pneumothorax")
SENTENCES = ("Right pleural effusion", "Left retrocardiac opacity", "Small left apical pneumothorax")


class Index:
    """Writes the folders; counts are RadVLM's times `scale`, at least one of each."""

    def __init__(self, root: Path, scale: float = 1.0, films: bool = False, seed: int = 0) -> None:
        self.root, self.films = root, films
        self.n = {name: max(1, round(count * scale)) for name, count in FULL.items()}
        self.rng = np.random.default_rng(seed)

    def write(self) -> None:
        for part in (self.mimic, self.chexpert, self.plus, self.vindr, self.padchest, self.nih, self.openi):
            part()

    def table(self, path: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def film(self, path: str, size: tuple[int, int] = (64, 48)) -> None:
        """A made-up film: noise round a bright middle."""
        if self.films:
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            grey = self.rng.integers(0, 256, size, np.uint8)
            Image.fromarray(grey).save(target, "JPEG" if path.endswith("jpg") else "PNG")

    def labels(self) -> list[str]:
        """A CheXpert-labeller row: mostly empty."""
        return [CELLS[value] for value in self.rng.integers(0, len(CELLS), len(LABELS)).tolist()]

    def mimic(self) -> None:
        """MIMIC-CXR-JPG, and Chest ImaGenome and MS-CXR, which lie on its films."""
        n = self.n
        total = n["mimic frontal"] + n["mimic other"]
        films, splits, studies, reports, frontal = [], [], [], [], []
        for index in range(total):
            train = index < n["mimic frontal"]
            view = "PA" if index % 3 else "AP"
            held_out = not train and index % 20 == 0
            if not train and not held_out:
                view = "LATERAL"
            patient, study, dicom = 10_000_000 + index, 50_000_000 + index, f"{index:08x}-synthetic"
            films.append((dicom, patient, study, view, 64, 48))
            splits.append((dicom, study, patient, "test" if held_out else "train"))
            said = REPORTED[index % len(REPORTED)]
            studies.append((patient, study, *(said.get(name, "") for name in LABELS)))
            empty = n["mimic reports"] <= index < n["mimic frontal"]
            reports.append((f"s{study}", "", EMPTY if empty else REPORTS[index % len(REPORTS)], "", ""))
            if train:
                frontal.append((dicom, patient, study, view))
            self.film(f"MIMIC-CXR-JPG/files/p10/p{patient}/s{study}/{dicom}.jpg")
        home = "MIMIC-CXR-JPG/mimic-cxr-2.0.0-"
        self.table(
            f"{home}metadata.csv",
            ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"),
            films,
        )
        self.table(f"{home}split.csv", ("dicom_id", "study_id", "subject_id", "split"), splits)
        self.table(f"{home}chexpert.csv", ("subject_id", "study_id", *LABELS), studies)
        self.table(
            "MIMIC-CXR-JPG/mimic_cxr_sectioned.csv",
            ("study", "impression", "findings", "last_paragraph", "comparison"),
            reports,
        )
        (self.root / "MIMIC-CXR-JPG" / "files").mkdir(exist_ok=True)
        self.imagenome(frontal, total)
        self.mscxr(frontal)

    def imagenome(self, frontal: Sequence[tuple[object, ...]], total: int) -> None:
        home = "CHEST_IMA/silver_dataset"
        header = ("", "subject_id", "study_id", "dicom_id", "ViewPosition")
        own = frontal[: self.n["imagenome"]]
        rows = [(i, patient, study, dicom, view) for i, (dicom, patient, study, view) in enumerate(own)]
        self.table(f"{home}/splits/train.csv", header, rows)
        self.table(f"{home}/splits/valid.csv", header, [(0, 1, 1, "not-a-film", "PA")])
        held_out = [
            (i, 10_000_000 + i, 50_000_000 + i, f"{i:08x}-synthetic", "PA")
            for i in range(len(frontal), total)
            if i % 20 == 0
        ]
        self.table(f"{home}/splits/test.csv", header, held_out)
        (self.root / home / "missing_ids.json").write_text("[]")
        (self.root / home / "scene_graph").mkdir(exist_ok=True)
        for dicom, *_ in own if self.films else ():
            objects = [
                {
                    "bbox_name": name,
                    "original_x1": 4 + i,
                    "original_y1": 6,
                    "original_x2": 30 + i,
                    "original_y2": 40,
                }
                for i, name in enumerate(REGIONS)
            ]
            path = self.root / home / "scene_graph" / f"{dicom}_SceneGraph.json"
            path.write_text(
                json.dumps({"image_id": dicom, "viewpoint": "PA", "gender": "F", "objects": objects})
            )

    def mscxr(self, frontal: Sequence[tuple[object, ...]]) -> None:
        rows = []
        films = self.n["mscxr films"]
        for index in range(max(films, self.n["mscxr phrases"])):
            dicom, patient, study, _ = frontal[index % films]
            text = SENTENCES[index // films]
            path = f"files/p10/p{patient}/s{study}/{dicom}.jpg"
            rows.append((dicom, "Pleural Effusion", text, path, 4, 20, 20, 30, 48, 64))
            if index % 5 == 0:  # one sentence, two boxes
                rows.append((dicom, "Pleural Effusion", text, path, 26, 20, 18, 30, 48, 64))
        self.table(
            "MS-CXR/MS_CXR_Local_Alignment_v1.0.0.csv",
            (
                "dicom_id",
                "category_name",
                "label_text",
                "path",
                "x",
                "y",
                "w",
                "h",
                "image_width",
                "image_height",
            ),
            rows,
        )

    def chexpert(self) -> None:
        header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
        rows = []
        for index in range(self.n["chexpert"] + self.n["chexpert lateral"]):
            seen = "frontal" if index < self.n["chexpert"] else "lateral"
            path = f"train/patient{index:05d}/study1/view1_{seen}.jpg"
            direction = "AP" if seen == "frontal" else ""
            rows.append((f"CheXpert-v1.0/{path}", "Female", 60, seen.capitalize(), direction, *self.labels()))
            self.film(f"CheXpert/{path}")
        self.table("CheXpert/train.csv", header, rows)
        (self.root / "CheXpert" / "train").mkdir(exist_ok=True)
        held_out = [f"test/patient9{index:05d}/study1/view1_frontal.jpg" for index in range(20)]
        self.table("CheXpert/test.csv", ("Path", *LABELS), [(path, *self.labels()) for path in held_out])
        for path in held_out:
            self.film(f"CheXpert/{path}")

    def plus(self) -> None:
        rows = []
        for index in range(self.n["plus"] + 20):
            findings = EMPTY if index >= self.n["plus"] else REPORTS[index % len(REPORTS)]
            path = f"train/patient{index:05d}/study1/view1_frontal.jpg"
            rows.append((path, "Frontal", "AP", f"patient{index:05d}", findings, "", "", "Male", "train"))
            self.film(f"CheXpertPlus/PNG/{path.replace('.jpg', '.png')}")
        self.table(
            "CheXpertPlus/df_chexpert_plus_240401.csv",
            (
                "path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "section_findings",
                "section_impression", "section_end_of_impression", "sex", "split",
            ),
            rows,
        )  # fmt: skip
        (self.root / "CheXpertPlus" / "PNG").mkdir(exist_ok=True)

    def vindr(self) -> None:
        """Three readers a film; those who saw the same thing drew it a little differently."""
        films, findings = self.n["vindr films"], self.n["vindr findings"]
        ill = max(1, films // 3)
        drawn: dict[int, list[str]] = {index: [] for index in range(films)}
        for index in range(findings):
            drawn[index % ill].append(CLASSES[index // ill])
        rows: list[tuple[object, ...]] = []
        for index, classes in drawn.items():
            film = f"{index:032x}"
            for reader in ("R8", "R9", "R10"):
                for at, name in enumerate(classes):
                    x, y = (int(value) for value in self.rng.integers(100, 130, 2))
                    rows.append((film, reader, name, x + 40 * at, y, x + 40 * at + 300, y + 300))
                if not classes:
                    rows.append((film, reader, "No finding", "", "", "", ""))
        header = ("image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max")
        self.table("VinDr-CXR/annotations/annotations_train.csv", header, rows)
        (self.root / "VinDr-CXR" / "train").mkdir(exist_ok=True)
        if self.films:
            for index in range(films):
                _dicom(self.root / f"VinDr-CXR/train/{index:032x}.dicom", self.rng)

    def padchest(self) -> None:
        films, phrases = self.n["padchest films"], self.n["padchest phrases"]
        found: dict[int, list[dict[str, object]]] = {index: [] for index in range(films)}
        for index in range(max(films, phrases)):
            text = SENTENCES[(index // films) % len(SENTENCES)] + "."
            boxes = [[0.1, 0.2, 0.4, 0.6]] + ([[0.6, 0.2, 0.9, 0.6]] if index % 7 == 0 else [])
            found[index % films].append(
                {"sentence_en": text, "abnormal": True, "boxes": boxes, "extra_boxes": []}
            )
        entries, master, table = [], [], []
        for index, sentences in found.items():
            film = f"{index}.png"
            normal: dict[str, object] = {
                "sentence_en": "The heart is normal in size.",
                "abnormal": False,
                "boxes": [],
            }
            entries.append({"StudyID": str(index), "ImageID": film, "findings": [*sentences, normal]})
            master.append((str(index), film, "F", "validation" if index % 10 == 0 else "train"))
            table.append((index, film, str(index), f"P{index}", "PA" if index % 2 else "AP"))
            self.film(f"PadChest/images_grounding/{film}")
        self.table("PadChest/master_table.csv", ("StudyID", "ImageID", "PatientSex_DICOM", "split"), master)
        self.table(
            "PadChest/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
            ("", "ImageID", "StudyID", "PatientID", "Projection"),
            table,
        )
        (self.root / "PadChest" / "grounded_reports_20240819.json").write_text(json.dumps(entries))
        (self.root / "PadChest" / "images_grounding").mkdir(exist_ok=True)

    def nih(self) -> None:
        labels = ("No Finding", "Effusion", "Cardiomegaly|Effusion", "Infiltration", "Nodule")
        rows, boxes, lists = [], [], {"train_val_list.txt": list[str](), "test_list.txt": list[str]()}
        for index in range(self.n["nih"]):
            patient = index // 2 + 1
            film = f"{patient:08d}_{index % 2:03d}.png"
            said = labels[patient % len(labels)]
            rows.append((film, said, index % 2, patient, 50, "F", "PA", 2500, 2048, 0.1, 0.1))
            lists["test_list.txt" if patient % 5 == 0 else "train_val_list.txt"].append(film)
            if "Effusion" in said and index % 10 == 2:
                boxes.append((film, "Effusion", 100.5, 600.25, 200.0, 150.0, "", "", ""))
            self.film(f"NIH-CXR14/images/{film}")
        header = (
            "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
            "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]",
        )  # fmt: skip
        self.table("NIH-CXR14/Data_Entry_2017_v2020.csv", header, rows)
        box_header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
        self.table("NIH-CXR14/BBox_List_2017.csv", box_header, boxes)
        for name, films in lists.items():
            (self.root / "NIH-CXR14" / name).write_text("\n".join(films) + "\n")
        (self.root / "NIH-CXR14" / "images").mkdir(exist_ok=True)

    def openi(self) -> None:
        folder = self.root / "Open-i" / "ecgen-radiology"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index in range(1, self.n["open-i"] + 1):
            films = [f"CXR{index}_IM-0001-{end}" for end in ("1001", "2001")]
            terms = ("normal",) if index % 3 == 0 else ("Pleural Effusion/right/small", "Cardiomegaly/mild")
            majors = "".join(f"<major>{term}</major>" for term in terms)
            images = "".join(f'<parentImage id="{film}"></parentImage>' for film in films)
            text = REPORTS[2] if index % 3 == 0 else "Mild cardiomegaly. Small right pleural effusion."
            (folder / f"{index}.xml").write_text(
                f'<?xml version="1.0"?><eCitation><uId id="CXR{index}"/><Abstract>'
                f'<AbstractText Label="FINDINGS">{text}</AbstractText>'
                '<AbstractText Label="IMPRESSION"/></Abstract>'
                f"<MeSH>{majors}</MeSH>{images}</eCitation>"
            )
            rows += [(films[0], "PA"), (films[1], "L")]
            for film in films:
                self.film(f"Open-i/NLMCXR_png/{film}.png")
        self.table("Open-i/nlmcxr_tsne_pa.csv", ("imageid", "tsne-view"), rows)
        (self.root / "Open-i" / "NLMCXR_png").mkdir(exist_ok=True)


def _dicom(path: Path, rng: np.random.Generator) -> None:
    """A DX film of 600 by 800 pixels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    film = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.Modality, film.PhotometricInterpretation = "DX", "MONOCHROME2"
    film.Rows, film.Columns, film.SamplesPerPixel = 800, 600, 1
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = rng.integers(0, 4096, (800, 600), np.uint16).tobytes()
    film.save_as(path, enforce_file_format=True)


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--scale", default=1.0, show_default=True, help="Fraction of the full counts.")
@click.option("--films", is_flag=True, help="Small made-up films as well.")
def main(root: Path, scale: float, films: bool) -> None:
    """Write made-up index files of every source under ROOT."""
    Index(root, scale, films).write()


if __name__ == "__main__":
    main()
