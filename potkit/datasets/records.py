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
    "ani1x-tz": """\
@misc{Kuryla2025DFTForces,
  author = {Kuryla, Domantas and Berger, Fabian and Cs{\\'a}nyi, G{\\'a}bor and Michaelides,
    Angelos},
  title = {How Accurate Are {DFT} Forces? Unexpectedly Large Uncertainties in Molecular Datasets},
  year = {2025},
  eprint = {2510.19774},
  archivePrefix = {arXiv}
}""",
    "transition1x": """\
@article{Schreiner2022Transition1x,
  author = {Schreiner, Mathias and Bhowmik, Arghya and Vegge, Tejs and Busk, Jonas and Winther,
    Ole},
  title = {{Transition1x} - a dataset for building generalizable reactive machine learning
    potentials},
  journal = {Scientific Data},
  volume = {9},
  pages = {779},
  year = {2022},
  doi = {10.1038/s41597-022-01870-w}
}""",
    "les": """\
@misc{Kim2025LES,
  author = {Kim, Dongjin and Wang, Xiaoyu and Zhong, Peichen and King, Daniel S. and Inizan, Theo
    Jaffrelot and Cheng, Bingqing},
  title = {A Universal Augmentation Framework for Long-Range Electrostatics in Machine Learning
    Interatomic Potentials},
  year = {2025},
  eprint = {2507.14302},
  archivePrefix = {arXiv}
}""",
    "n2p2": """\
@article{Singraber2019n2p2,
  author = {Singraber, Andreas and Behler, J{\\"o}rg and Dellago, Christoph},
  title = {Library-Based {LAMMPS} Implementation of High-Dimensional Neural Network Potentials},
  journal = {Journal of Chemical Theory and Computation},
  volume = {15},
  pages = {1827--1840},
  year = {2019},
  doi = {10.1021/acs.jctc.8b00770}
}""",
    "scan-water": """\
@article{Piaggi2021SCANwater,
  author = {Piaggi, Pablo M. and Panagiotopoulos, Athanassios Z. and Debenedetti, Pablo G. and Car,
    Roberto},
  title = {Phase Equilibrium of Water with Hexagonal and Cubic Ice Using the {SCAN} Functional},
  journal = {Journal of Chemical Theory and Computation},
  volume = {17},
  pages = {3065--3077},
  year = {2021},
  doi = {10.1021/acs.jctc.1c00041}
}""",
    "md17": """\
@article{Chmiela2017MD17,
  author = {Chmiela, Stefan and Tkatchenko, Alexandre and Sauceda, Huziel E. and Poltavsky, Igor
    and Sch{\\"u}tt, Kristof T. and M{\\"u}ller, Klaus-Robert},
  title = {Machine learning of accurate energy-conserving molecular force fields},
  journal = {Science Advances},
  volume = {3},
  pages = {e1603015},
  year = {2017},
  doi = {10.1126/sciadv.1603015}
}""",
    "qm22": """\
@article{Bowman2022QM22,
  author = {Bowman, Joel M. and Qu, Chen and Conte, Riccardo and Nandi, Apurba and Houston, Paul L.
    and Yu, Qi},
  title = {The {MD17} datasets from the perspective of datasets for gas-phase "small" molecule
    potentials},
  journal = {The Journal of Chemical Physics},
  volume = {156},
  pages = {240901},
  year = {2022},
  doi = {10.1063/5.0089200}
}""",
    "qm22-ethanol": """\
@article{Houston2022ethanol,
  author = {Houston, Paul L. and Qu, Chen and Nandi, Apurba and Conte, Riccardo and Yu, Qi and
    Bowman, Joel M.},
  title = {Permutationally invariant polynomial regression for energies and gradients, using
    reverse differentiation, achieves orders of magnitude speed-up with high precision compared to
    other machine learning methods},
  journal = {The Journal of Chemical Physics},
  volume = {156},
  pages = {044120},
  year = {2022},
  doi = {10.1063/5.0080506}
}""",
    "qm22-nma": """\
@article{Nandi2019NMA,
  author = {Nandi, Apurba and Qu, Chen and Bowman, Joel M.},
  title = {Full and fragmented permutationally invariant polynomial potential energy surfaces for
    trans and cis {N-methyl} acetamide and isomerization saddle points},
  journal = {The Journal of Chemical Physics},
  volume = {151},
  pages = {084306},
  year = {2019},
  doi = {10.1063/1.5119348}
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
    # structures of each system and the atoms that each of them has, where all are known
    systems: dict[str, tuple[int, int]] = field(default_factory=dict)
    forces: bool = True
    labelled: bool = True  # whether structures have energies
    periodic: bool = False
    licence: str = "not stated"
    source: str | None = None
    # of the files; Structures always hold Å, eV and eV/Å
    units: str = ""
    # below POTKIT_REFERENCE_DATA, where several sets lie in one folder (default: the name)
    folder: str = ""
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
    # the table of isolated atoms in `references.LEVELS`, where it is not that of ``level``
    isolated: str = ""


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
_MD17_ETHANOL_SUMS = """
    c610eb9113939e21c2c4d9afcc5736671a33884fc5df45f4cf036a377ec699d4  md17_ethanol_sample.xyz
    1f5919561e69c12754e10b335721be7cc59ce9fbba3970188303f88d462cdd57  mlff_ethanol.npz
"""
_ANI1X_TZ_SUMS = """
    6d9067c873788df9a3d48687ce44af7d33ec1d4b721c202813cd862fdb0e40f8  fd_ani_1x_tz.xyz
"""
_TRANSITION1X_SUMS = """
    f788d97bfb790208943374aaa285a77d85c2e3a484efd107d5f913e05621e596  fd_transition1x.xyz
"""
_SPICE_SUBSET_SUMS = """
    e4c8537cd2d374ed9d7c8eaaad06acb1f8d0eff630ff9c15ef8dcc83f2057ca0  spice_des370k_dimers.xyz
    34d42173093375dff3c21189f2e1296332c614fb0e94b4c9ab2555e742307779  spice_des370k_monomers.xyz
    4dbc1ea634f57db9b9c26344a4d564f096d87aa41e44b428b423c896f28d5029  spice_dipeptides.xyz
    55e6517713ca86804c57ffd7da5806cb3a7d1b69b7bf369d397bcccec90c8a42  spice_pubchem.xyz
    9d6405cdf12a89152a558d3be58ace79239294fddf591812d6baed02f158bb5f  spice_qmugs.xyz
    e99084a0f2ae8fba2cda3a4fe5a800f345c4484b34ffb7c02632d583736e5270  spice_solvated_amino_acids.xyz
    d0d388076911d1158e78cb24117e7cadc7b4132321377c3ca12716db26129c24  spice_water.xyz
"""
_SPICE_MONOMER_SUMS = """
    6815d51e0cf91237b636490183c7e023269d06f8edfa66b83a3c22e0f96348ca  spu_des-monomers.hdf5
"""
_SPICE_CONFORMER_SUMS = """
    bcea5fe59077834c92de9f46059a019ffd1bf1ae22a0ce82414ef4fc108df349 spu_amino-acid-ligand-test.hdf5
    b877f7bf97b32f80dc1e08ae28411100d1c7bfca4af312411d8b87d2c4912ea1 spu_solvated-amino-acids.hdf5
    3390f921a0b480ec5d78a5e0f63d09191630a973d3371f8acb007e257fabee65 spu_water.hdf5
    cfd0921b5d07776ee1fb7caada04f061a2d8ba98b601f732bc9f5fe7664e1cef spu_water60.hdf5
"""
_RPBE_SUMS = """
    ef709df957a60699a224847026c164208256c2993fe8ca20e853c6c5beac51f5  n2p2_200.data
"""
_RPBE_D3_SUMS = """
    53a19661d0e49a9b5f85bf5b108eba883b673acfedfbc2b6fba5b89650a866df  n2p2_norm.data
"""
_RPBE_D3_192_SUMS = """
    63246aa6ec1e5c1f806236a05c0ce3181f54b7a2c622d4520985b59d5dc40aef  rpbe_test.xyz
"""
_SCAN_SUMS = """
    fb25615dc0f0d8b8a678b802c2f01e78f06ee4edc0327364a19bffc39a10e882 multithermal/type.raw
    7f52e31474791bdfdc9db945eb56841ff7160b82807562c4239fe26ed8bfb0a7 multithermal/set.000/box.npy
    ad7a931132f8f949480d40cd33a4ce84d77afe7286e459d8547cf880cf6aa171 multithermal/set.000/coord.npy
    3243d98c7e09b09002cd27eb80582353146953e255eb21d83eafa6a4fe13adb2 multithermal/set.000/energy.npy
    548b576ca4180e20b58c5027b1b31ac44fab1629d18244f93665fb3686eaf800 multithermal/set.000/force.npy
"""
_QM22_ETHANOL_SUMS = """
    7c49d71f22f4144abcacd27a113d6370ebf53617e982cba576c0275a7085b4dd  Ethanol.zip
"""
_QM22_NMA_SUMS = """
    1264b0592eb12f03b2dffefb5b8efb616571b0c9ca9f943e6530b21fc4e8e6d4  N-methylacetamide.zip
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
            "of the test; train_mixedT.xyz stands in the order of temperature: its first third is "
            "at 300 K, rows taken from its start are no test of hot structures"
        ),
        isolated="wB97X/6-31G(d), 3BPA",
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
        name="ani1x-tz-1k",
        kind="reference",
        title="1,000 structures of ANI-1x, drawn at random, with triple-zeta labels",
        level="wB97X/def2-TZVPP",
        citation=("ani1x-tz", "ani1x"),
        elements="H C N O",
        atoms=(2, 47),
        molecules=463,
        structures=1000,
        licence="not stated (ANI-1x itself: CC0)",
        source="https://github.com/water-ice-group/datasets_dft_accuracy",
        units="eV, eV/Å",
        files=_files(_ANI1X_TZ_SUMS),
        format="extxyz",
        options={"energy_key": "orca_energy", "forces_key": "orca_forces"},
        read_from=".",
        split="by system: test formulas are not trained on",
        used_for="fine-tuning on real data: unseen formulas",
        note=(
            "a system is a formula; the same file holds the labels of ani1x-1k, another level in "
            "other units: 2–12.5 eV apart in energy, 174 meV/Å (RMS) in forces; never mix the two"
        ),
    ),
    Record(
        name="ani1x-1k",
        kind="reference",
        title="1,000 structures of ANI-1x, drawn at random, with ANI-1x's own labels",
        level="wB97X/6-31G(d)",
        citation=("ani1x", "ani1x-tz"),
        elements="H C N O",
        atoms=(2, 47),
        molecules=463,
        structures=1000,
        licence="not stated (ANI-1x itself: CC0)",
        source="https://github.com/water-ice-group/datasets_dft_accuracy",
        units="Hartree, Hartree/Å",
        folder="ani1x-tz-1k",
        files=_files(_ANI1X_TZ_SUMS),
        format="extxyz",
        options={
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "energy_unit": "hartree",
            "forces_unit": "hartree/Å",
        },
        read_from=".",
        split="by system: test formulas are not trained on",
        used_for="fine-tuning on real data: unseen formulas, ANI-1's own level",
        note=(
            "a system is a formula; 6-31G(d) with six Cartesian d functions, as in ANI-1 and "
            "COMP6, not the five of 3BPA and Transition1x; see ani1x-tz-1k for the same structures "
            "at another level; 271 structures (109 formulas) have a formula of ani-mini: "
            "filters.unseen_formulas leaves them out"
        ),
    ),
    Record(
        name="transition1x-1k",
        kind="reference",
        title="1,000 structures on reaction paths, drawn at random from Transition1x",
        level="wB97X/6-31G(d), spherical d",
        citation=("transition1x", "ani1x-tz"),
        elements="H C N O",
        atoms=(6, 21),
        molecules=122,
        structures=1000,
        licence="not stated (Transition1x itself: CC BY 4.0)",
        source="https://github.com/water-ice-group/datasets_dft_accuracy",
        units="eV, eV/Å",
        files=_files(_TRANSITION1X_SUMS),
        format="extxyz",
        options={"energy_key": "REF_energy", "forces_key": "REF_forces"},
        read_from=".",
        split="by system: test formulas are not trained on",
        used_for="fine-tuning on real data: far from equilibrium",
        note=(
            "the labels as published; a system is a formula; net forces up to 36 meV/Å; row 255 "
            "lies 0.136 eV above the recomputed energy and has forces up to 2.57 eV/Å away, all "
            "others are within 28 meV/Å: leave it out or take transition1x-1k-recomputed; 87 of "
            "the formulas are also in ani-mini"
        ),
    ),
    Record(
        name="transition1x-1k-recomputed",
        kind="reference",
        title="the structures of transition1x-1k, recomputed with tighter settings",
        level="wB97X/6-31G(d), spherical d, recomputed",
        citation=("ani1x-tz", "transition1x"),
        elements="H C N O",
        atoms=(6, 21),
        molecules=122,
        structures=1000,
        licence="not stated (Transition1x itself: CC BY 4.0)",
        source="https://github.com/water-ice-group/datasets_dft_accuracy",
        units="eV, eV/Å",
        folder="transition1x-1k",
        files=_files(_TRANSITION1X_SUMS),
        format="extxyz",
        options={"energy_key": "orca_energy", "forces_key": "orca_forces"},
        read_from=".",
        split="by system: test formulas are not trained on",
        used_for="fine-tuning on real data: far from equilibrium, no net forces",
        note=(
            "a system is a formula; never mix with the labels of transition1x-1k (27 meV/Å apart "
            "in forces, RMS)"
        ),
    ),
    Record(
        name="spice-subsets",
        kind="reference",
        title="673 structures of seven subsets of SPICE",
        level="wB97M-D3(BJ)/def2-TZVPPD",
        citation=("spice", "les"),
        elements="H C N O F P S Cl Br",
        atoms=(3, 91),
        molecules=473,
        structures=673,
        licence="CC BY-NC 4.0 (SPICE itself: CC0)",
        source="https://github.com/ChengUCB/les_fit",
        units="eV, eV/Å",
        files=_files(_SPICE_SUBSET_SUMS),
        format="extxyz",
        read_from=".",
        split="by system, or one file (spice-subsets/spice_pubchem …) to test",
        used_for="fine-tuning on real data: many kinds of molecules",
        note=(
            "total energies; a system is a formula; all are neutral; the files also hold a "
            "network's predictions (MACE_energy, MACE_forces), which are never read; two "
            "structures of spice-dipeptides' training file are in spice_dipeptides.xyz"
        ),
    ),
    Record(
        name="spice-conformers-unlabelled",
        kind="reference",
        title="conformations from which SPICE was computed: geometries without labels",
        level="none: geometries only",
        citation=("spice", "spice2"),
        elements="H C N O F P S Cl Br I",
        atoms=(3, 180),
        molecules=606,
        structures=24_200,
        forces=False,
        labelled=False,
        licence="CC0",
        source="https://github.com/openmm/spice-dataset",
        units="nm",
        files=_files(_SPICE_MONOMER_SUMS) + _files(_SPICE_CONFORMER_SUMS),
        format="spice-conformers",
        read_from=".",
        split="none: all for pretraining; spice-conformers-unlabelled/spu_water is one file",
        used_for="pretraining on real data without labels",
        note=(
            "elements come from the map numbers of the SMILES, the only place they are in; waters "
            "are clusters of 30 and 60 without a box; molecules of one structure are numbered; "
            "charges range from −1 to 2"
        ),
    ),
    Record(
        name="spice-monomers-hcno",
        kind="reference",
        title="the molecules of H, C, N and O among the monomers of spice-conformers-unlabelled",
        level="none: geometries only",
        citation=("spice",),
        elements="H C N O",
        atoms=(3, 22),
        molecules=232,
        structures=11_600,
        forces=False,
        labelled=False,
        licence="CC0",
        source="https://github.com/openmm/spice-dataset",
        units="nm",
        folder="spice-conformers-unlabelled",
        files=_files(_SPICE_MONOMER_SUMS),
        format="spice-conformers",
        options={"elements": "H C N O"},
        read_from=".",
        split="none: all for pretraining",
        used_for="pretraining on real data without labels",
        note=(
            "50 conformations of each molecule, ions among them; 146 molecules with other elements "
            "are left out"
        ),
    ),
    Record(
        name="rpbe-water-n2p2",
        kind="reference",
        title="322 boxes of water and ice, RPBE without dispersion",
        level="RPBE",
        citation=("rpbe", "n2p2"),
        elements="H O",
        atoms=(24, 384),
        molecules=1,
        structures=322,
        periodic=True,
        source="https://github.com/CompPhysVienna/n2p2",
        units="Bohr, Hartree, Hartree/Bohr",
        files=_files(_RPBE_SUMS),
        format="runner",
        read_from=".",
        split="by structure",
        used_for="fine-tuning on real data: water",
        note=(
            "from the repository's history; without D3: 0.23 eV per water above the RPBE-D3 of "
            "rpbe-d3-water-n2p2, never mix the two; a system is a formula (7 of them); 17 boxes "
            "hold a dissociated water and have no molecules (Masked by molecule takes such a box "
            "for one molecule); box 233 is also box 38 of rpbe-d3-water-n2p2, another is in "
            "rpbe-water-sample"
        ),
    ),
    Record(
        name="rpbe-d3-water-n2p2",
        kind="reference",
        title="72 boxes of water and ice, RPBE-D3",
        level="RPBE-D3",
        citation=("rpbe", "n2p2"),
        elements="H O",
        atoms=(24, 384),
        molecules=1,
        structures=72,
        periodic=True,
        source="https://github.com/CompPhysVienna/n2p2",
        units="Bohr, Hartree, Hartree/Bohr",
        folder="rpbe-water-n2p2",
        files=_files(_RPBE_D3_SUMS),
        format="runner",
        read_from=".",
        split="by structure",
        used_for="fine-tuning on real data: water",
        note=(
            "with D3: never mix with rpbe-water-n2p2; one box holds a dissociated water and has no "
            "molecules"
        ),
    ),
    Record(
        name="rpbe-d3-water-192",
        kind="reference",
        title="50 boxes of 64 waters, RPBE-D3",
        level="RPBE-D3",
        citation=("les",),
        elements="H O",
        atoms=(192, 192),
        molecules=1,
        structures=50,
        periodic=True,
        licence="CC BY-NC 4.0",
        source="https://github.com/ChengUCB/les_fit",
        units="eV, eV/Å",
        files=_files(_RPBE_D3_192_SUMS),
        format="extxyz",
        options={"waters": True},
        read_from=".",
        split="by structure",
        used_for="fine-tuning on real data: liquid water",
        note=(
            "the test file of that repository; another program than rpbe-d3-water-n2p2: energies "
            "are −14.6 eV per water, not −2083 eV, so the two are not one set"
        ),
    ),
    Record(
        name="scan-water",
        kind="reference",
        title="122 boxes of 64 waters from multithermal dynamics, SCAN",
        level="SCAN",
        citation=("scan-water",),
        elements="H O",
        atoms=(192, 192),
        molecules=1,
        structures=122,
        periodic=True,
        source="https://github.com/CSIprinceton/data-water-ice-1bar",
        units="Å, eV, eV/Å",
        files=_files(_SCAN_SUMS),
        format="deepmd",
        options={"type_map": ["O", "H"]},
        read_from=".",
        split="by structure",
        used_for="fine-tuning on real data: liquid water over temperatures",
        note=(
            "the files name no elements: type 0 is O, type 1 is H; energies are stored as float32, "
            "in steps of 2 meV a box; the boxes differ in size"
        ),
    ),
    Record(
        name="md17-ethanol",
        kind="reference",
        title="ethanol at 500 K from MD17: 2,000 structures at random and 2,000 successive steps",
        level="PBE+vdW(TS)",
        citation=("md17",),
        elements="H C O",
        atoms=(9, 9),
        molecules=1,
        structures=4000,
        licence="MIT (of the repositories)",
        source="https://github.com/atomistic-machine-learning/schnetpack",
        units="kcal/mol, kcal/mol/Å",
        files=_files(_MD17_ETHANOL_SUMS),
        format="md17",
        options={"system": "ethanol"},
        read_from=".",
        split="by structure, md17-ethanol/md17_ethanol_sample only; mlff_ethanol by block",
        used_for="fine-tuning on real data",
        note=(
            "md17_ethanol_sample.xyz is drawn at random from the trajectory; mlff_ethanol.npz "
            "(from thorben-frank/mlff) is 2,000 successive steps of it, 0.012 Å apart: drawn at "
            "random, its test structures would lie beside training structures; 3 structures are in "
            "both files within 1e-3 Å; ani-mini and spice-monomers-hcno hold ethanol as well"
        ),
    ),
    Record(
        name="qm22-ethanol",
        kind="reference",
        title="ethanol up to high energies, for zero-point energies",
        level="B3LYP/6-311+G(d,p)",
        citation=("qm22", "qm22-ethanol"),
        elements="H C O",
        atoms=(9, 9),
        molecules=1,
        structures=11_011,
        licence="Apache-2.0",
        source="https://github.com/jmbowma/QM-22",
        units="Å, Hartree, gradients in Hartree/Bohr",
        folder="qm22",
        files=_files(_QM22_ETHANOL_SUMS),
        format="qm22",
        read_from=".",
        split="by block: structures stand in the order of trajectories",
        used_for="fine-tuning on real data: one molecule up to 4 eV above its minimum",
        note=(
            "neighbours in the file are alike (energies correlate to 0.89); the files hold "
            "gradients, which are minus the forces; B3LYP with VWN5 (b3lyp5 of PySCF gives the "
            "first energy to 1 meV; with VWN3 it lies 2.6 eV lower)"
        ),
    ),
    Record(
        name="qm22-n-methylacetamide",
        kind="reference",
        title="trans and cis N-methylacetamide up to high energies",
        level="B3LYP/cc-pVDZ",
        citation=("qm22", "qm22-nma"),
        elements="H C N O",
        atoms=(12, 12),
        molecules=1,
        structures=6_607,
        licence="Apache-2.0",
        source="https://github.com/jmbowma/QM-22",
        units="Å, Hartree, gradients in Hartree/Bohr",
        folder="qm22",
        files=_files(_QM22_NMA_SUMS),
        format="qm22",
        read_from=".",
        split="by block: structures stand in the order of trajectories",
        used_for="fine-tuning on real data: one molecule with two isomers up to 5 eV up",
        note=(
            "neighbours in the file are alike (energies correlate to 0.98); the files hold "
            "gradients, which are minus the forces; B3LYP with VWN5; another basis than "
            "qm22-ethanol"
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
            "the denoise paper's table says 3 to 50 atoms, and its code's page links an earlier "
            "1.1.x (Zenodo 7338495); no subset of this release has more than 96 atoms"
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
        systems={
            "Ac-Ala3-NHMe": (85_109, 42),
            "DHA": (69_753, 56),
            "stachyose": (27_272, 87),
            "AT-AT": (20_001, 60),
            "AT-AT-CG-CG": (10_153, 118),
            "buckyball-catcher": (6_102, 148),
            "double-walled_nanotube": (5_032, 370),
        },
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
        systems={
            "aspirin": (100_000, 21),
            "azobenzene": (99_988, 24),
            "benzene": (100_000, 12),
            "ethanol": (100_000, 9),
            "malonaldehyde": (100_000, 9),
            "naphthalene": (100_000, 18),
            "paracetamol": (100_000, 20),
            "salicylic": (100_000, 16),
            "toluene": (100_000, 15),
            "uracil": (100_000, 12),
        },
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
