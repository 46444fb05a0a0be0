"""The data sets potkit knows: one record each.

Adding a set is adding a record here; nothing else changes.

Facts (counts, levels of theory, licences, addresses, checksums) come from the papers, the sets' own
pages and widely used loaders. None means that it is not published or could not be confirmed: the
first download's checksum is then recorded and verified afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# BibTeX by key
CITATIONS: dict[str, str] = {
    "ani1": """\
@article{Smith2017ANI1,
  author = {Smith, Justin S. and Isayev, Olexandr and Roitberg, Adrian E.},
  title = {{ANI-1}, A data set of 20 million calculated off-equilibrium conformations for
    organic molecules},
  journal = {Scientific Data},
  volume = {4},
  pages = {170193},
  year = {2017},
  doi = {10.1038/sdata.2017.193}
}""",
    "ani1x": """\
@article{Smith2020ANI1x,
  author = {Smith, Justin S. and Zubatyuk, Roman and Nebgen, Benjamin and Lubbers, Nicholas and
    Barros, Kipton and Roitberg, Adrian E. and Isayev, Olexandr and Tretiak, Sergei},
  title = {The {ANI-1ccx} and {ANI-1x} data sets, coupled-cluster and density functional theory
    properties for molecules},
  journal = {Scientific Data},
  volume = {7},
  pages = {134},
  year = {2020},
  doi = {10.1038/s41597-020-0473-z}
}""",
    "schnet": """\
@inproceedings{Schuett2017SchNet,
  author = {Sch{\\"u}tt, Kristof T. and Kindermans, Pieter-Jan and Sauceda, Huziel E. and
    Chmiela, Stefan and Tkatchenko, Alexandre and M{\\"u}ller, Klaus-Robert},
  title = {{SchNet}: A continuous-filter convolutional neural network for modeling quantum
    interactions},
  booktitle = {Advances in Neural Information Processing Systems 30},
  year = {2017}
}""",
    "spice": """\
@article{Eastman2023SPICE,
  author = {Eastman, Peter and Behara, Pavan Kumar and Dotson, David L. and Galvelis, Raimondas
    and Herr, John E. and Horton, Josh T. and Mao, Yuezhi and Chodera, John D. and Pritchard,
    Benjamin P. and Wang, Yuanqing and De Fabritiis, Gianni and Markland, Thomas E.},
  title = {{SPICE}, A Dataset of Drug-like Molecules and Peptides for Training Machine Learning
    Potentials},
  journal = {Scientific Data},
  volume = {10},
  pages = {11},
  year = {2023},
  doi = {10.1038/s41597-022-01882-6}
}""",
    "md22": """\
@article{Chmiela2023MD22,
  author = {Chmiela, Stefan and Vassilev-Galindo, Valentin and Unke, Oliver T. and Kabylda, Adil
    and Sauceda, Huziel E. and Tkatchenko, Alexandre and M{\\"u}ller, Klaus-Robert},
  title = {Accurate global machine learning force fields for molecules with hundreds of atoms},
  journal = {Science Advances},
  volume = {9},
  pages = {eadf0873},
  year = {2023},
  doi = {10.1126/sciadv.adf0873}
}""",
    "rmd17": """\
@article{Christensen2020rMD17,
  author = {Christensen, Anders S. and von Lilienfeld, O. Anatole},
  title = {On the role of gradients for machine learning of molecular energies and forces},
  journal = {Machine Learning: Science and Technology},
  volume = {1},
  pages = {045018},
  year = {2020},
  doi = {10.1088/2632-2153/abba6f}
}""",
    "rpbe": """\
@article{Morawietz2016water,
  author = {Morawietz, Tobias and Singraber, Andreas and Dellago, Christoph and Behler,
    J{\\"o}rg},
  title = {How van der {Waals} interactions determine the unique properties of water},
  journal = {Proceedings of the National Academy of Sciences},
  volume = {113},
  pages = {8368--8373},
  year = {2016},
  doi = {10.1073/pnas.1602375113}
}""",
    "3bpa": """\
@article{Kovacs2021linearACE,
  author = {Kov{\\'a}cs, D{\\'a}vid P{\\'e}ter and van der Oord, Cas and Kucera, Jiri and Allen,
    Alice E. A. and Cole, Daniel J. and Ortner, Christoph and Cs{\\'a}nyi, G{\\'a}bor},
  title = {Linear Atomic Cluster Expansion Force Fields for Organic Molecules: Beyond {RMSE}},
  journal = {Journal of Chemical Theory and Computation},
  volume = {17},
  pages = {7696--7711},
  year = {2021},
  doi = {10.1021/acs.jctc.1c00647}
}""",
    "pyscf": """\
@article{Sun2020PySCF,
  author = {Sun, Qiming and Zhang, Xing and Banerjee, Samragni and Bao, Peng and others},
  title = {Recent developments in the {PySCF} program package},
  journal = {The Journal of Chemical Physics},
  volume = {153},
  pages = {024109},
  year = {2020},
  doi = {10.1063/5.0006074}
}""",
    "alkanes": """\
@misc{AlkaneDataset,
  author = {Hu, Quin H. and Goodpaster, Jason},
  title = {Alkane-Dataset},
  howpublished = {GitHub, GoodpasterGroup/Alkane-Dataset},
  year = {2023},
  doi = {10.26434/chemrxiv-2023-13cv6}
}""",
    "spice2": """\
@article{Eastman2024Nutmeg,
  author = {Eastman, Peter and Pritchard, Benjamin P. and Chodera, John D. and Markland, Thomas
    E.},
  title = {Nutmeg and {SPICE}: Models and Data for Biomolecular Machine Learning},
  journal = {Journal of Chemical Theory and Computation},
  volume = {20},
  number = {19},
  pages = {8583--8593},
  year = {2024},
  doi = {10.1021/acs.jctc.4c00794}
}""",
    "tip3p": """\
@article{Jorgensen1983TIP3P,
  author = {Jorgensen, William L. and Chandrasekhar, Jayaraman and Madura, Jeffry D. and Impey,
    Roger W. and Klein, Michael L.},
  title = {Comparison of simple potential functions for simulating liquid water},
  journal = {The Journal of Chemical Physics},
  volume = {79},
  pages = {926--935},
  year = {1983},
  doi = {10.1063/1.445869}
}""",
    "denoise": """\
@article{Wang2023denoise,
  author = {Wang, Yuyang and Xu, Changwen and Li, Zijie and Barati Farimani, Amir},
  title = {Denoise Pretraining on Nonequilibrium Molecules for Accurate and Transferable Neural
    Potentials},
  year = {2023},
  journal = {Journal of Chemical Theory and Computation},
  volume = {19},
  number = {15},
  pages = {5077--5087},
  doi = {10.1021/acs.jctc.3c00289},
  eprint = {2303.02216},
  archivePrefix = {arXiv}
}""",
    "masked": """\
@article{Zhang2024masked,
  author = {Zhang, Zehua and Li, Zijie and Barati Farimani, Amir},
  title = {Masked Pretraining Strategy for Neural Potentials},
  journal = {AIP Advances},
  volume = {14},
  number = {9},
  year = {2024},
  doi = {10.1063/5.0202647},
  eprint = {2402.15921},
  archivePrefix = {arXiv}
}""",
}


@dataclass(frozen=True)
class Remote:
    """A file of a set: its place below the set's folder, where it comes from, and what it must hash
    to ("sha256:…", "md5:…").

    ``members``: of an archive (``unpack``) patterns of all files that are read from it, each of
    which fits at least one: they tell whether a set that was unpacked by hand is complete.
    """

    path: str
    url: str | None = None
    checksum: str | None = None
    unpack: bool = False
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """All that is known about one data set. Of an embedded set the file itself tells the sizes."""

    name: str
    kind: str  # "embedded" (in the checkout), "reference" (files beside the project) or "public"
    title: str
    level: str  # of theory
    citation: tuple[str, ...]  # keys of CITATIONS
    elements: str  # symbols
    atoms: tuple[int, int] | None = None  # of the smallest and the largest structure
    molecules: int | None = None
    structures: int | None = None
    forces: bool = True
    periodic: bool = False
    licence: str = "not stated"
    source: str | None = None
    files: tuple[Remote, ...] = ()
    read_from: str = ""  # file or folder, from the set's folder on
    format: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the reader
    split: str = ""
    used_for: str = ""
    note: str = ""
    parts: dict[str, str] = field(default_factory=dict)  # which file is which published part
    # the published index files, rows from 0 within each molecule; {fold:02d} in their names where
    # there are several splits
    indices: dict[str, str] = field(default_factory=dict)
    choose: str | None = None  # fits exactly one of the unpacked files, the one to read


_BOTNET = (
    "https://raw.githubusercontent.com/davkovacs/BOTNet-datasets/"
    "4a5ea06c3f514f24164428823ba1f5e2d2233b58/dataset_3BPA"
)
_ALKANES = "https://raw.githubusercontent.com/GoodpasterGroup/Alkane-Dataset"
_ALKANE_FOLDERS = {  # where each part stands in that repository
    "core": "4b0ebd0d5ab3084484d3b789e0a106611612e325/DFT/ANI-1%20Core",
    "md": "1432de89256ecda363aa737c2e0a9093025207fe/DFT/aseMD",
    "nms": "1432de89256ecda363aa737c2e0a9093025207fe/DFT/NMS",
    "nms/C2H6_DFT+Force_NMS.h5": "5d99a515fa9c9dd62b692fe70e93ca51b4501559/DFT/NMS",
}


def _alkane_url(path: str) -> str:
    folder, name = path.split("/")
    return f"{_ALKANES}/{_ALKANE_FOLDERS.get(path, _ALKANE_FOLDERS[folder])}/{name}"


def _botnet_url(path: str) -> str:
    return f"{_BOTNET}/{path}"


def _files(sums: str, url: Callable[[str], str] | None = None) -> tuple[Remote, ...]:
    """The files of a table as `sha256sum` prints it: a checksum and a path on each line."""
    rows = [line.split() for line in sums.strip().splitlines()]
    return tuple(
        Remote(path, url(path) if url else None, f"sha256:{checksum}") for checksum, path in rows
    )


_ANI1 = tuple(f"ANI-1_release/ani_gdb_s{heavy:02d}.h5" for heavy in range(1, 9))
_ISO17_DATABASES = ("iso17/reference.db", "iso17/test_within.db", "iso17/test_other.db")
_ISO17 = (*_ISO17_DATABASES, "iso17/train_ids.txt", "iso17/validation_ids.txt")
_RMD17_MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
_RMD17 = tuple(f"rmd17/npz_data/rmd17_{molecule}.npz" for molecule in _RMD17_MOLECULES)
_ALKANE_SUMS = """
    53ff2ca5a5d6e3f6493592d328f8b9191c3525167c7c67731b67c18c1f894eed  core/gdb_HC_s01.h5
    efde882e5f5678fe79a9d603d47d550eef9dd97fa74f23595afc15c459fb28fd  core/gdb_HC_s02.h5
    4278a5eb669436c2429a8815911caed35018f071a0ead22d3e72b4112cc3fa7b  md/C2H6_DFT_aseMD.h5
    695ac0b75d058a49377e65ba974197bf27c2dc869a5769e495375faa7e53b483  md/C3H8_DFT_aseMD.h5
    82d944da58815c6f191793c7935df385b761be227bba2f5a3db2729aa7003e77  md/C4H10_12_DFT_aseMD.h5
    56acd6cdeffc40276bbfc6421a1b89b6138bc58d70e63f5535a3b974745a1af8  md/C4H10_23_DFT_aseMD.h5
    693b48d102c2c5467a19316be5c83a21f1f7f7caea80c68b1221b30c2161cb1b  md/C5H12_12_DFT_aseMD.h5
    ef3346c4efe203e09c79f59800b6d0196902ac09bfab3a35ee028442ae391e0f  md/C5H12_23_DFT_aseMD.h5
    ad60c56bce894bc8eac7a43288a257151f1279da1f75724527beec24373f175a  md/C6H14_12_DFT_aseMD.h5
    d82dc0cb4802b5aa52c948f5654b4f61fce2b2d666f634d84e2840a96df432e8  md/C6H14_23_DFT_aseMD.h5
    66b9a4b011d4c8a242cd72e53cf7dfd5aadfc1d6f5df6b58d3d697d686582781  md/C6H14_34_DFT_aseMD.h5
    9afae4258cb2d5d475cabcee7e23741a00ddbd55aa5b019e824b397018a8cc7e  md/C7H16_12_DFT_aseMD.h5
    5a9eb19b68872936beff01329599f371604934ab2b980719072ff3df2d676138  md/C7H16_23_DFT_aseMD.h5
    96848d7648fb29c3f5aa9f0a8b57963f3a62d7c2f70666cf50466e7c3b7e7c2f  md/C7H16_34_DFT_aseMD.h5
    81414988b274432f82ffed2706fb9a672d35bb40d656f1003065a835b22d4fc6  nms/C2H6_DFT+Force_NMS.h5
    2537568080a6e01044abf6794149c51c92f85102611203254d3883f7e143de24  nms/C2H6_DFT_NMS.h5
    47a98e64d4e5f3027255e9f80cc1885379c1e146cbb226173804cb92576af164  nms/C3H8_DFT_NMS.h5
    e030b7d494a75aa90cd01d58548dd7aa7e4aa3cf263b66e2574d23ebfec8f4f6  nms/C4H10_12_DFT_NMS.h5
    ac108291989b6ae1f1b8a73f53c7549339e1d9fddd2f4cf7b7e5bf5983792ee3  nms/C4H10_23_DFT_NMS.h5
"""
_DIPEPTIDE_SUMS = """
    17a66d7c3a26fd40ddd664b7724476f2e42a6fd1bd4c5c47b020531036696621  spice-dipep-dipolar_train.xyz
    6fa1e34400e7df53ae309c0fdf28112dad4b904591633f4c54d9031f04f8e389  spice-dipep-dipolar_val.xyz
    f1e378d2dba06147844c9977b2dae960cf6354c92c874fa7c05d2fb19c512dec  spice-dipep-dipolar_test.xyz
"""
_3BPA_SUMS = """
    d109971fab90e2231ad931a83eb704c8d940f5c7d7a8de27fe3b84ea18634c0a  train_300K.xyz
    bc108532964b2ed259eaaabf82e5dfaffa5bda9ac384fc2afabcce192a49250b  train_mixedT.xyz
    e12a2465a2612bf38fd5dabdf64d4b57fc58ce9610a858c54ea1142d517c053f  iso_atoms.xyz
"""
_GDML = "http://www.quantum-machine.org/gdml/repo/datasets"
_MD22 = (
    "Ac-Ala3-NHMe",
    "DHA",
    "stachyose",
    "AT-AT",
    "AT-AT-CG-CG",
    "buckyball-catcher",
    "double-walled_nanotube",
)
_ZENODO = "https://zenodo.org/records"
_BY_MOLECULE = "80/10/10 of each molecule's conformations"

RECORDS: tuple[Record, ...] = (
    Record(
        name="ani-mini",
        kind="embedded",
        title="small HCNO molecules sampled along normal modes, the embedded stand-in for ANI-1",
        level="GFN2-xTB",
        citation=("denoise",),
        elements="H C N O",
        licence="MIT",
        files=(Remote("ani-mini.h5"),),
        read_from="ani-mini.h5",
        split=_BY_MOLECULE,
        used_for="notebooks: denoise pretraining and fine-tuning",
    ),
    Record(
        name="dft-mini",
        kind="embedded",
        title="small HCNO molecules sampled along normal modes, labelled by DFT",
        level="wB97X/6-31G(d), five d functions, PySCF",
        citation=("pyscf", "ani1"),
        elements="H C N O",
        licence="MIT",
        files=(Remote("dft-mini.h5"),),
        read_from="dft-mini.h5",
        split="by molecule; the systems in info['large'] are to test on",
        used_for="fine-tuning and testing on real labels without a download",
        note="no molecule has the formula of one of ani-mini; the level of 3BPA",
    ),
    Record(
        name="tip3p-mini",
        kind="embedded",
        title="258 TIP3P waters in a 20 Å cube, NVT 300 K, several seeds",
        level="TIP3P (PME)",
        citation=("tip3p", "masked"),
        elements="H O",
        atoms=(774, 774),
        periodic=True,
        licence="MIT",
        files=(Remote("tip3p-mini.h5"),),
        read_from="tip3p-mini.h5",
        split="by seed (a system is a seed)",
        used_for="notebooks: masked pretraining and fine-tuning",
    ),
    Record(
        name="spice-mini",
        kind="embedded",
        title=(
            "small molecules, dimers, dipeptides, solvated amino acids, ions: the stand-in for "
            "SPICE"
        ),
        level="GFN2-xTB",
        citation=("spice", "denoise"),
        elements="H Li C N O F Na Mg P S Cl K Ca Br I",
        licence="MIT",
        files=(Remote("spice-mini.h5"),),
        read_from="spice-mini.h5",
        split=_BY_MOLECULE,
        used_for="what SPICE is for in the denoise paper: fine-tuning",
    ),
    Record(
        name="md22-mini",
        kind="embedded",
        title="molecular dynamics of MD22's own molecules at 500 K: the stand-in for MD22",
        level="GFN2-xTB",
        citation=("md22", "denoise"),
        elements="H C N O",
        licence="MIT",
        files=(Remote("md22-mini.h5"),),
        read_from="md22-mini.h5",
        split="80/10/10, per molecule",
        used_for="what MD22 is for in the denoise paper: fine-tuning on large molecules",
    ),
    Record(
        name="iso17-mini",
        kind="embedded",
        title="molecular dynamics of isomers of C7O2H10: the stand-in for ISO17",
        level="GFN2-xTB",
        citation=("schnet", "denoise"),
        elements="H C O",
        atoms=(19, 19),
        licence="MIT",
        files=(Remote("iso17-mini.h5"),),
        read_from="iso17-mini.h5",
        split="its own parts: three isomers unseen (test_other)",
        used_for="what ISO17 is for in the denoise paper: unseen isomers",
    ),
    Record(
        name="rmd17-mini",
        kind="embedded",
        title="molecular dynamics of the ten rMD17 molecules at 500 K: the stand-in for rMD17",
        level="GFN2-xTB",
        citation=("rmd17", "masked"),
        elements="H C N O",
        atoms=(9, 24),
        licence="MIT",
        files=(Remote("rmd17-mini.h5"),),
        read_from="rmd17-mini.h5",
        split="within each molecule",
        used_for="what rMD17 is for in the masked paper: pretraining and fine-tuning",
    ),
    Record(
        name="water-mini",
        kind="embedded",
        title=(
            "periodic boxes of 8–64 waters over densities and temperatures: the stand-in for RPBE "
            "water"
        ),
        level="AMOEBA (amoeba2018), PME",
        citation=("rpbe", "masked"),
        elements="H O",
        atoms=(24, 192),
        periodic=True,
        licence="MIT",
        files=(Remote("water-mini.h5"),),
        read_from="water-mini.h5",
        split="81/9/10",
        used_for="what RPBE-D3 water is for in the masked paper: pretraining and fine-tuning",
    ),
    Record(
        name="ani1-alkanes",
        kind="reference",
        title=(
            "alkanes in ANI-1's layout: ANI-1's own C1–C2, normal modes up to bond breaking, "
            "dynamics"
        ),
        level="wB97X/6-31G(d)",
        citation=("alkanes", "ani1"),
        elements="H C",
        atoms=(4, 23),
        molecules=9,
        structures=97_629,
        forces=False,
        source="https://github.com/GoodpasterGroup/Alkane-Dataset",
        format="ani1",
        options={"systems": "composition"},
        read_from=".",
        split=_BY_MOLECULE,
        used_for="denoise pretraining on real data",
        note=(
            "a few conformations lie > 1000 kcal/mol above the minimum: filter with max_energy=; "
            "of all files only nms/C2H6_DFT+Force_NMS.h5 has forces, and its geometries are those "
            "of nms/C2H6_DFT_NMS.h5 (splits.distinct keeps one of each); n-alkanes only, so a "
            "composition is a molecule"
        ),
        files=_files(_ALKANE_SUMS, _alkane_url),
    ),
    Record(
        name="spice-dipeptides",
        kind="reference",
        title="dipeptides of SPICE with energies relative to free atoms",
        level="wB97M-D3(BJ)/def2-TZVPPD",
        citation=("spice",),
        elements="H C N O",
        atoms=(42, 51),
        molecules=6,
        structures=600,
        licence="CC BY-NC 4.0",
        source="https://github.com/BingqingCheng/cace-lr-fit",
        format="extxyz",
        read_from=".",
        split="its own train / val / test files",
        used_for="fine-tuning on real data",
        parts={
            "spice-dipep-dipolar_train.xyz": "train",
            "spice-dipep-dipolar_val.xyz": "valid",
            "spice-dipep-dipolar_test.xyz": "test",
        },
        files=_files(_DIPEPTIDE_SUMS),
    ),
    Record(
        name="3bpa",
        kind="reference",
        title="3-(benzyloxy)pyridin-2-amine, 500 frames at 300 K and 500 at mixed temperature",
        level="wB97X/6-31G(d)",
        citation=("3bpa",),
        elements="H C N O",
        atoms=(27, 27),
        molecules=1,
        structures=1000,
        licence="MIT",
        source="https://github.com/davkovacs/BOTNet-datasets",
        format="extxyz",
        read_from=".",
        split="train_300K.xyz to train, train_mixedT.xyz to test",
        used_for="fine-tuning on real data",
        parts={"train_300K.xyz": "train", "train_mixedT.xyz": "test"},
        note=(
            "iso_atoms.xyz holds the isolated atoms of this level and program; 31 of the 500 "
            "mixed-temperature frames are frames of train_300K.xyz (within 1e-3 Å): leave them out "
            "of the test"
        ),
        files=_files(_3BPA_SUMS, _botnet_url),
    ),
    Record(
        name="rpbe-water-sample",
        kind="reference",
        title="20 structures of the RPBE-D3 water set",
        level="RPBE-D3",
        citation=("rpbe",),
        elements="H O",
        atoms=(48, 192),
        molecules=1,
        structures=20,
        periodic=True,
        source="https://github.com/CompPhysVienna/n2p2",
        format="runner",
        read_from=".",
        split="by structure",
        used_for="checking the RuNNer reader and periodic models",
        files=(
            Remote(
                "input.data",
                checksum="sha256:107d72ef4c1d55d5b8a7cf565c79e2050c6c2787c886b4852fff7097811eb526",
            ),
        ),
    ),
    Record(
        name="ani-1",
        kind="public",
        title="off-equilibrium conformations of the GDB molecules with up to 8 heavy atoms",
        level="wB97X/6-31G(d)",
        citation=("ani1",),
        elements="H C N O",
        atoms=(2, 26),
        molecules=57_462,
        structures=24_687_809,
        forces=False,
        source="https://doi.org/10.6084/m9.figshare.c.3846712",
        files=(
            Remote(
                "ani-1_dataset.tar.gz",
                "https://ndownloader.figshare.com/files/9057631",
                None,
                unpack=True,
                members=_ANI1,
            ),
        ),
        format="ani1",
        read_from="ANI-1_release",
        split="pretrain 95/5, finetune " + _BY_MOLECULE,
        used_for="denoise paper: pretraining and fine-tuning",
        note="eight files ani_gdb_s01.h5 … s08.h5; `smiles` cannot be trusted",
    ),
    Record(
        name="ani-1x",
        kind="public",
        title="actively learned conformations of organic molecules",
        level="wB97X/6-31G(d)",
        citation=("ani1x",),
        elements="H C N O",
        atoms=(2, 63),
        molecules=63_865,
        structures=5_496_771,
        licence="CC0",
        source="https://doi.org/10.6084/m9.figshare.10047041.v1",
        files=(
            Remote(
                "ani1x-release.h5",
                "https://springernature.figshare.com/ndownloader/files/18112775",
                "sha256:fe0ba06198ee72cf1003deebab2652097f6ab518337784dc811fa7da0c3bf5ac",
            ),
        ),
        format="ani1x",
        read_from="ani1x-release.h5",
        split="pretrain 95/5, finetune " + _BY_MOLECULE,
        used_for="denoise paper: pretraining and fine-tuning",
    ),
    Record(
        name="iso17",
        kind="public",
        title="isomers of C7O2H10, molecular dynamics",
        level="PBE+vdW(TS)",
        citation=("schnet",),
        elements="H C O",
        atoms=(19, 19),
        molecules=129,
        structures=645_000,
        source="http://quantum-machine.org/datasets",
        read_from="iso17",
        format="iso17",
        split="its own id files",
        files=(
            Remote(
                "iso17.tar.gz",
                "http://quantum-machine.org/datasets/iso17.tar.gz",
                None,
                unpack=True,
                members=_ISO17,
            ),
        ),
        used_for="denoise paper: fine-tuning, unseen isomers",
        note=(
            "the files do not name the isomer of a frame: a system is a graph of bonds, found from "
            "the geometry"
        ),
    ),
    Record(
        name="spice-1",
        kind="public",
        title=(
            "SPICE 1.1.3: drug-like molecules, dimers, dipeptides, solvated amino acids, ion pairs"
        ),
        level="wB97M-D3(BJ)/def2-TZVPPD",
        citation=("spice",),
        elements="H Li C N O F Na Mg P S Cl K Ca Br I",
        atoms=(2, 96),
        molecules=19_238,
        structures=1_132_808,
        licence="CC0",
        source="https://github.com/openmm/spice-dataset",
        format="spice",
        read_from="SPICE-1.1.3.hdf5",
        files=(
            Remote(
                "SPICE-1.1.3.hdf5",
                f"{_ZENODO}/7606550/files/SPICE-1.1.3.hdf5",
                "md5:be93706b3bb2b2e327b690b185905856",
            ),
        ),
        split=_BY_MOLECULE,
        used_for="denoise paper: fine-tuning",
        note=(
            "the denoise paper's table says up to 350 atoms; no subset of SPICE 1 has more than 96"
        ),
    ),
    Record(
        name="spice-2",
        kind="public",
        title="SPICE 2.0.1: SPICE with more molecules, ligands and water clusters",
        level="wB97M-D3(BJ)/def2-TZVPPD",
        citation=("spice", "spice2"),
        elements="H Li B C N O F Na Mg Si P S Cl K Ca Br I",
        atoms=(2, 110),
        molecules=113_999,
        structures=2_008_628,
        licence="CC0",
        source="https://github.com/openmm/spice-dataset",
        format="spice",
        read_from="SPICE-2.0.1.hdf5",
        files=(
            Remote(
                "SPICE-2.0.1.hdf5",
                f"{_ZENODO}/10975225/files/SPICE-2.0.1.hdf5",
                "md5:bfba2224b6540e1390a579569b475510",
            ),
        ),
        split=_BY_MOLECULE,
        used_for="not in the papers",
    ),
    Record(
        name="md22",
        kind="public",
        title="molecular dynamics of seven large molecules",
        level="PBE+MBD",
        citation=("md22",),
        elements="H C N O",
        atoms=(42, 370),
        molecules=7,
        structures=223_422,
        source="http://www.sgdml.org",
        format="md17",
        read_from=".",
        files=tuple(Remote(f"md22_{m}.npz", f"{_GDML}/md22_{m}.npz", None) for m in _MD22),
        split="80/10/10, per molecule",
        used_for="denoise paper: fine-tuning",
    ),
    Record(
        name="rmd17",
        kind="public",
        title="MD17 recomputed: ten small molecules, molecular dynamics at 500 K",
        level="PBE/def2-SVP",
        citation=("rmd17",),
        elements="H C N O",
        atoms=(9, 24),
        molecules=10,
        structures=1_000_000,
        licence="CC0",
        source="https://doi.org/10.6084/m9.figshare.12672038.v3",
        format="md17",
        files=(
            Remote(
                "rmd17.tar.bz2",
                "https://figshare.com/ndownloader/files/23950376",
                "sha256:cddeea2ec2c4b22a9de16a9a65a3eeedac5b29da9c99c20bbff0153912bf922b",
                unpack=True,
                members=_RMD17,
            ),
        ),
        read_from="rmd17/npz_data",
        split="50 000 / 1 000 / rest of each molecule (masked paper); the set's own index files",
        used_for="masked paper: pretraining and fine-tuning",
        indices={
            "train": "rmd17/splits/index_train_{fold:02d}.csv",
            "test": "rmd17/splits/index_test_{fold:02d}.csv",
        },
        note="about 100 000 per molecule, counted as stored; azobenzene has fewer",
    ),
    Record(
        name="rpbe-water",
        kind="public",
        title="liquid water and ice",
        level="RPBE-D3",
        citation=("rpbe",),
        elements="H O",
        atoms=(48, 192),
        molecules=1,
        structures=7_241,
        periodic=True,
        source="https://doi.org/10.5281/zenodo.2634098",
        format="runner",
        read_from=".",
        files=(
            Remote(
                "training-data_H2O.tar.gz",
                f"{_ZENODO}/2634098/files/training-data_H2O.tar.gz",
                None,
                unpack=True,
                # how its files are called is not published: see choose
                members=("**/*[Rr][Pp][Bb][Ee]*",),
            ),
        ),
        split="81/9/10",
        used_for="masked paper: pretraining and fine-tuning",
        choose=r"(?i)input\.data.*rpbe.?(d3|vdw)|rpbe.?(d3|vdw).*input\.data",
        note=(
            "the archive holds several functionals: the file of RPBE-D3 is chosen by its name; the "
            "range of atoms is that of the 20 structures of rpbe-water-sample"
        ),
    ),
)
