"""The molecules of `ani-mini`, as SMILES: neutral, closed-shell, of 1 to 8 atoms C, N and O."""

from __future__ import annotations

FAMILIES: dict[str, str] = {
    "one and two heavy atoms": """
        C N O CC CN CO NN NO OO C=C C=O C=N N=N N=O C#C C#N N#N
    """,
    "alkanes": """
        CCC CCCC CC(C)C CCCCC CCC(C)C CC(C)(C)C CCCCCC CCCC(C)C CCC(C)CC CC(C)C(C)C CCCCCCC
        CC(C)CC(C)C CCCCCCCC CCC(C)(C)C CC(C)(C)C(C)(C)C
    """,
    "rings of carbon": """
        C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C1CCCCCC1 CC1CC1 CC1CCC1 CC1CCCC1 CC1CCCCC1 C1CC12CC2
        C1CC2CC12 C1CC2CCC1C2 C1CC1C1CC1 C1=CC1 C1=CCC1 C1=CCCC1 C1=CCCCC1 C1=CCC=C1 C1=CCC=CC1
        C1=CC=CCC1 C=C1CC1 C=C1CCC1 C=C1CCCC1 C12C3C1C23
    """,
    "alkenes": """
        CC=C CCC=C C/C=C/C C/C=C\\C CC(C)=C C=CC=C C=C=C CC=C=C C=CCC=C CC(C)=C(C)C C/C=C/C=C
        CC(=C)C=C C=CC=CC=C CCCCC=C CC=C(C)C C=CC1CC1
    """,
    "alkynes": """
        CC#C CCC#C CC#CC C#CC#C C#CC=C C#CCC#C CC(C)C#C CC#CC=C CC#CC#C C#CC1CC1 CCCC#C CC#CCC
    """,
    "alcohols": """
        CCO CCCO CC(C)O CCCCO CC(C)(C)O CCC(C)O OCCO OCC(O)CO CC(O)CO OCC=C OCC#C C=CO OC1CC1
        OC1CCC1 OC1CCCC1 OC1CCCCC1 OCC1CC1 CC(C)CO OCCCO CC(O)C=C OC1=CCCC1
    """,
    "ethers": """
        COC CCOC CCOCC COCCOC C1CO1 CC1CO1 C1COC1 C1CCOC1 C1CCOCC1 C1COCCO1 C1OCCO1 COCOC COC=C
        C=COC=C COC1CC1 COCCO CC(C)OC C1=COC=C1 C1=COCC1 C1=COCCC1 CC1OC1C COC#C COO COOC CCOO
    """,
    "aldehydes and ketones": """
        CC=O CCC=O CC(C)=O CCCC=O CC(C)C=O CCC(C)=O C=CC=O CC(=O)C=C O=CC=O CC(=O)C=O CC(=O)C(C)=O
        O=CCC=O CC(=O)CC(C)=O C#CC=O O=C1CC1 O=C1CCC1 O=C1CCCC1 O=C1CCCCC1 O=C1C=CCC1
        O=C1C=CC(=O)C=C1 OCC=O CC(O)C=O CC(=O)CO CCC(=O)CC C=C=O CC=C=O CC(C)=C=O O=C=O COCC=O
        CC(C)(C)C=O O=CC1CC1 O=C1COC1
    """,
    "acids, esters, carbonates, anhydrides": """
        OC=O CC(O)=O CCC(O)=O CCCC(O)=O CC(C)C(O)=O OCC(O)=O CC(O)C(O)=O OC(=O)C=C OC(=O)C(O)=O
        OC(=O)C=O CC(=O)C(O)=O OC(=O)CC(O)=O COC=O CCOC=O COC(C)=O CCOC(C)=O CCC(=O)OC COC(=O)C=C
        CC(=O)OC=C COC(=O)OC O=C1OCCO1 O=C1CCO1 O=C1CCCO1 O=C1CCCCO1 CC(=O)OC(C)=O O=COC=O OC(O)=O
        O=C1OC=CO1 OC(=O)C#C OC(=O)C1CC1 OC(=O)/C=C/C CC(=O)OO O=C1C=CC(=O)O1 O=C1CCC(=O)O1
    """,
    "amines, hydrazines, hydroxylamines": """
        CCN CNC CN(C)C CCCN CC(C)N CCNC CCNCC NCCN CC(C)(C)N CCN(C)C NCC=C NCC#C C1CN1 C1CNC1
        C1CCNC1 C1CCNCC1 C1CNCCN1 CN1CC1 CN1CCC1 CN1CCCC1 CN1CCCCC1 NC1CC1 NC1CCC1 NC1CCCC1 CNN
        CN(C)N CNNC CNO CON CN(C)O NCCO CNCCO CN(C)CCO COCCN C1COCCN1 NCN CNCNC C1CC1CN C1CN2CCC1CC2
        NCCCN
    """,
    "imines, azo, oximes, diazo": """
        CC=N CN=C CC(C)=N CC=NC CN=NC CC=NO C=NO CC(C)=NO C=NN CC=NN C=CC=N CN=CC=NC C1CC=NC1
        C1=NCCN1 CON=C CN=C=O CN=C=NC N=C=O C=NN=C CON=O CN=O
    """,
    "nitriles": """
        CC#N CCC#N CCCC#N CC(C)C#N C=CC#N N#CC#N N#CCC#N C#CC#N NCC#N OCC#N COCC#N CNC#N NC#N N#CC=O
        CC(=O)C#N CC(C)(C)C#N N#CC1CC1 CN(C)C#N NCCC#N OCCC#N N#C/C=C/C#N N#CC(=C)C
    """,
    "amides, ureas, carbamates, amidines": """
        NC=O CNC=O CN(C)C=O CC(N)=O CC(=O)NC CC(=O)N(C)C CCC(N)=O CCNC=O NC(N)=O CNC(N)=O CNC(=O)NC
        NC(=O)C=C NC(=O)C(N)=O NC(=O)C=O COC(N)=O CCOC(N)=O NC(=N)N NC=N CC(N)=N O=C1CCN1 O=C1CCCN1
        O=C1CCCCN1 O=C1NCCN1 O=C1CCC(=O)N1 O=CNC=O CC(=O)NC(C)=O NOC=O CC(=O)NO O=C1C=CC(=O)N1
        O=C1NC(=O)CN1 NC(=O)CC(N)=O CC(=O)NN NNC=O NC(=O)NO
    """,
    "amino acids and small biomolecules": """
        NCC(O)=O CC(N)C(O)=O CNCC(O)=O NCCC(O)=O NCC(N)=O NC(CO)C(O)=O CC(N)C(N)=O OCC(O)C=O NCC=O
        CC(C)(N)C(O)=O OC(=O)C1CCN1 NCC(=O)OC OC1COC1 NC(C=O)CO
    """,
    "nitro, nitrites and other N-O groups": """
        C[N+](=O)[O-] CC[N+](=O)[O-] C=C[N+](=O)[O-] CO[N+](=O)[O-] O[N+](=O)[O-] ON=O N[N+](=O)[O-]
        C[N+](C)(C)[O-]
    """,
    "aromatic carbocycles": """
        c1ccccc1 Cc1ccccc1 Oc1ccccc1 Nc1ccccc1 C=Cc1ccccc1 C#Cc1ccccc1 O=Cc1ccccc1 N#Cc1ccccc1
        COc1ccccc1 CCc1ccccc1 Cc1ccccc1C Cc1ccc(C)cc1 Oc1ccccc1O Oc1ccc(O)cc1 Nc1ccccc1N
        Nc1ccc(O)cc1 Cc1ccc(O)cc1 CNc1ccccc1
    """,
    "aromatic heterocycles": """
        c1ccncc1 c1cncnc1 c1cnccn1 c1ccnnc1 c1ncncn1 c1cc[nH]c1 c1c[nH]cn1 c1cn[nH]c1 c1cocn1
        c1ccon1 c1nnc[nH]1 c1c[nH]nn1 c1nnn[nH]1 c1ncon1 c1nnco1 Cc1ccccn1 Cc1cccnc1 Cc1ccncc1
        Cn1cccc1 Cc1ccc[nH]1 Cn1ccnc1 Cc1c[nH]cn1 Cn1cccn1 Cc1ccco1 Cc1ccoc1 Cc1ncco1 Cc1ccno1
        Oc1ccccn1 O=c1cc[nH]cc1 O=c1cccc[nH]1 Nc1ccccn1 Nc1ccncc1 Nc1ncccn1 Nc1ccncn1
        O=c1cc[nH]c(=O)[nH]1 Nc1cc[nH]c(=O)n1 Cc1ncccn1 Cc1cnccn1 Cc1ccnnc1 O=Cc1ccco1 O=Cc1ccc[nH]1
        N#Cc1ccncc1 N#Cc1ccc[nH]1 OCc1ccco1 Cn1cncn1 Cn1ccnn1 NCc1ccco1 Nc1ncn[nH]1 Nc1cc[nH]n1
        Cc1ccc(C)o1 Cc1ccc(C)[nH]1 COc1ccncc1 Cc1ncc[nH]1 Cc1cc(C)no1
    """,
}

MOLECULES: tuple[str, ...] = tuple(
    smiles for block in FAMILIES.values() for smiles in block.split()
)
