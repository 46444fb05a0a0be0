"""The systems of `spice-mini`, as SMILES, in subsets named after SPICE's own; all closed-shell."""

from __future__ import annotations

# of an amino acid N-CHR-C(=O), by one-letter code; lower case: charged as at pH 7
SIDE_CHAINS = {
    "A": "C",
    "S": "CO",
    "C": "CS",
    "T": "[C@@H](C)O",
    "V": "C(C)C",
    "N": "CC(N)=O",
    "D": "CC(O)=O",
    "d": "CC(=O)[O-]",
    "k": "CCCC[NH3+]",
    "M": "CCSC",
    "F": "Cc1ccccc1",
    "H": "Cc1c[nH]cn1",
}


def peptide(residues: str, waters: int = 0) -> str:
    """SMILES of Ac-residues-NHMe, with ``waters`` beside it."""

    def unit(residue: str) -> str:
        return "NCC(=O)" if residue == "G" else f"N[C@@H]({SIDE_CHAINS[residue]})C(=O)"

    middle = "".join(map(unit, residues))
    return f"CC(=O){middle}NC" + ".O" * waters


SMALL = """
    CF FC(F)F OC(=O)C(F)(F)F Fc1ccccc1 CC(F)(F)F OCCF O=CC(F)F C=CF
    CCl ClCCl ClC(Cl)Cl Clc1ccccc1 CC(=O)Cl C=CCl OC(=O)CCl Clc1ccncc1
    CBr BrCCBr Brc1ccccc1 CC(=O)CBr C=CBr Brc1ccoc1 CI CCI Ic1ccccc1 ICI NC(=O)CI
    CS CSC CSSC CS(C)=O CS(C)(=O)=O c1ccsc1 CC(N)=S CS(N)(=O)=O CC(=O)SC OCCS c1cscn1 CN=C=S C1CCSC1
    CP CP(C)C COP(=O)(OC)OC CP(O)(O)=O OP(O)(O)=O CP(C)(C)=O COP(O)(O)=O
    FC(F)(Cl)Br CS(=O)(=O)Cl Cc1csc(Cl)n1 NC(=O)c1cc(F)cs1
    OC(=O)c1cc(Br)ccn1 CSCCC(N)C(=O)O Sc1ccc(Cl)cc1 FC(F)(F)c1ccncc1
    CC(=O)Nc1ccccc1 c1ccc2[nH]ccc2c1 Cn1cnc2c1c(=O)n(C)c(=O)n2C
    NC(=O)c1cccnc1 O=c1cc[nH]c(=O)[nH]1 OCC1OC(O)C(O)C(O)C1O
    C1COCCN1 CN(C)C=O CN1CCCC1=O N#Cc1ccccc1 O=[N+]([O-])c1ccccc1
    CC[N+](=O)[O-] CN=[N+]=[N-] CC(=O)OC CC(O)C(=O)O
    CC(=O)[O-] C[NH3+] NC(N)=[NH2+] c1c[nH+]c[nH]1 C[N+](C)(C)C
    [O-]c1ccccc1 CS(=O)(=O)[O-] COP(=O)([O-])OC C[S-] [O-]C=O
    [O-]C(=O)C(F)(F)F C[NH+](C)C [O-][N+](=O)[O-] OS(=O)(=O)[O-] C[n+]1ccccc1 C[S+](C)C
"""
DIMERS = """
    O.O O.N O.C O.CO O.CC(C)=O O.C=O O.c1ccccc1 c1ccccc1.c1ccccc1
    C.C N.N CO.CO CC(=O)O.CC(=O)O NC=O.NC=O CNC(C)=O.O
    CS.O CSC.CO CF.O CCl.O CBr.O CI.O Fc1ccccc1.O Clc1ccccc1.N
    c1ccoc1.CO c1ccsc1.O c1cc[nH]c1.c1ccncc1 C#C.O C=C.C=C C#N.O
    CC#N.CC#N CS(C)=O.O COP(=O)(OC)OC.O CP(C)(C)=O.CO c1ccccc1.C
    c1ccncc1.O Oc1ccccc1.O CN.CO O=C=O.O O=C=O.O=C=O
    FC(F)F.CC(C)=O ClC(Cl)Cl.CN(C)C Ic1ccccc1.c1ccncc1
    Brc1ccccc1.C=O CC(=O)[O-].O C[NH3+].O C[N+](C)(C)C.CC(=O)[O-]
    NC(N)=[NH2+].O c1c[nH+]c[nH]1.O C[NH3+].c1ccccc1 [O-]C=O.CO CS(=O)(=O)[O-].O COP(=O)([O-])OC.O
    [Na+].c1ccccc1 [K+].c1ccccc1 [Li+].O [Li+].CNC(C)=O
    [Na+].CNC(C)=O [K+].CC(C)=O [Na+].CC(=O)[O-] [K+].COP(=O)([O-])OC
    [Cl-].CO [Br-].O [F-].O [I-].O [Cl-].CNC(C)=O [I-].CC#N
"""
CLUSTERS = """
    O.O.O O.O.O.O O.O.O.O.O O.O.O.O.O.O [Li+].O.O.O.O [Na+].O.O.O.O
    [K+].O.O.O.O.O [Mg+2].O.O.O.O.O.O [Ca+2].O.O.O.O.O.O
    [F-].O.O.O [Cl-].O.O.O.O [Br-].O.O.O.O [I-].O.O.O.O
    [Na+].[Cl-].O.O.O [K+].[Br-].O.O.O [Li+].[I-].O.O
"""
ION_PAIRS = """
    [Li+].[F-] [Li+].[Cl-] [Li+].[Br-] [Li+].[I-]
    [Na+].[F-] [Na+].[Cl-] [Na+].[Br-] [Na+].[I-]
    [K+].[F-] [K+].[Cl-] [K+].[Br-] [K+].[I-]
    [Li+].[Na+] [Na+].[K+]
"""
DIPEPTIDES = "GG GA AA AG GS SA AC CG GV VA GN GD Ad Gk GT TA GM GF GH SC CC SS".split()
AMINO_ACIDS = "G A S C T V N d k M H F".split()

SUBSETS: dict[str, tuple[str, ...]] = {
    "Small molecules": tuple(SMALL.split()),
    "Dimers": tuple(DIMERS.split()),
    "Clusters": tuple(CLUSTERS.split()),
    "Ion Pairs": tuple(ION_PAIRS.split()),
    "Dipeptides": tuple(peptide(r) for r in DIPEPTIDES),
    "Solvated Amino Acids": tuple(peptide(r, waters=4) for r in AMINO_ACIDS),
}
