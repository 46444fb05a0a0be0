"""The molecules of `dft-mini`, as SMILES: neutral, closed-shell, of H, C, N and O.

None has the molecular formula of a molecule of `ani-mini` (a test compares), so that what is
pretrained there and tested here has seen neither the molecule nor an isomer of it.
"""

from __future__ import annotations

# of 3 to 12 atoms, hydrogen included
FAMILIES: dict[str, str] = {
    "three to six atoms": """
        [N-]=[N+]=O N=[N+]=[N-] O=C=C=C=O N#CN=O N#CN=N O=CN=O N#CC#CC#N N#CN=NC#N N#CON N#CNO
        C#CN=N N#CNC#N C#COC#N N#COC=O c1nnno1 c1nnon1 N#CC(=O)O N=NC=O N#CN=[N+]=[N-]
        O=CN=[N+]=[N-]
    """,
    "chains of multiple bonds": """
        C#CC#CC#C C#CC#CC#N N#CC=CC=O C=CC#CC#C C#CC(=O)C#C C#CC#CC=O CC#CC#N C#CCC#N
        C#CC(=O)C=O C#CC(=O)C#N C=C(C#N)N=O C=CC#CC=O C#CC=CC#C C#CC#CCO CC#CC(=O)O C#CCOC=O
        C#CCOC#C N#CC(O)C#N CN=[N+]=[N-] CCN=[N+]=[N-] N#CCN=[N+]=[N-] N#CC(=O)C#N
    """,
    "amides, carbamates, hydrazides": """
        NC(=O)N=O NC(=O)NN NNC(=O)NN CNC(=O)NO CONC(N)=O COC(=O)NO COC(=O)NN NCC(=O)NO
        NC(=O)C(=O)O O=CNC(=O)O NNC(=O)CO CC(=O)NC=O NC(=O)CC=O C=CC(=O)NO O=CC(=O)NO NC(=O)OC=O
        C=COC(N)=O NC(=O)OCO N#CC(=O)NC N#CNC(N)=O NC(N)=NO NC(N)=NN
    """,
    "imines, oximes, hydrazones, nitrosamines": """
        C=NN=CN C=NNC=O CON=CC=O NN=CC=O NN=CNN CN=CNN CC(N)=NN CON=CC#N NC(C#N)=NO CC(=O)C=NO
        NC=NNC=O O=NCC(=O)O CN=CC(=O)O
    """,
    "alcohols, ethers, acids, amines": """
        OCOCO COCON NNCC(=O)O NOCC(=O)O O=C(O)OCO COC(=O)C#N OCC(=O)C#N N#CCNN N#CCOC=O COCOO
        OCCOO OC(=O)COO
    """,
    "nitro and nitrates": """
        O=CC[N+](=O)[O-] N#CC[N+](=O)[O-] C#CC[N+](=O)[O-] NC(=O)N[N+](=O)[O-] CCO[N+](=O)[O-]
        CC(=O)O[N+](=O)[O-] C=CO[N+](=O)[O-] CC(=O)[N+](=O)[O-]
    """,
    "aromatic rings": """
        c1nnncn1 c1nncnn1 Nc1cnon1 Cc1nnno1 Nc1nnco1 Nc1ncno1 Oc1cnoc1 Nc1ccon1 Nc1ccno1
        Cn1nnnn1 Nc1nnn[nH]1 Nn1cnnn1 Cc1ncon1 Cc1nnco1 Cc1nonc1 N#Cc1ncco1 N#Cc1ccon1
        N#Cc1cc[nH]n1 N#Cc1nc[nH]n1 O=Cc1cc[nH]n1 C#Cc1ccon1 N#Cc1ccco1 C#Cc1ccco1 Oc1ccncn1
        Oc1cnccn1 Oc1ccnnc1 Nc1ncncn1 Nc1nccnn1 N#Cc1ncccn1 N#Cc1cnccn1 O=Cc1ncccn1 Cc1nncnn1
        O=c1[nH]cn[nH]1 O=c1cc[nH]o1 O=c1[nH]ccc(=O)o1
    """,
    "other rings": """
        O=C1NCN1 O=C1NNC1=O O=C1NC(=O)C1=O O=C1OC(=O)O1 O=C1NCCO1 O=C1CNCO1 C1=NCON1 C1=NNCO1
        O=C1CNN1 O=C1OCOC1=O O=C1CNC1=O O=C1C=CC1=O O=C1C=CN=N1 O=C1C=CC(=O)N=N1 O=C1N=CCN1
        O=NN1CC1 C1NCNN1
    """,
}
# of 13 to 20 atoms: to test on, larger than all the others
LARGE_FAMILIES: dict[str, str] = {
    "chains": """
        CCOCOCC NCC(=O)NCC CC(O)C(N)C(O)=O NCC(=O)NCC(=O)O COC(=O)CC(=O)OC CN(C)CC#CC
    """,
    "rings": """
        NC(=O)c1ccccc1 NC(=O)c1cccnc1 CN1CCOCC1 Cc1c[nH]c(=O)[nH]c1=O Nc1ncnc2[nH]cnc12
        c1ccc2[nH]ccc2c1
    """,
}


def listed(families: dict[str, str]) -> tuple[str, ...]:
    """The SMILES of all ``families``, in their order."""
    return tuple(smiles for block in families.values() for smiles in block.split())


MOLECULES: tuple[str, ...] = listed(FAMILIES)
LARGE: tuple[str, ...] = listed(LARGE_FAMILIES)
