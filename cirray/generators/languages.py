"""Which language a short text is in, by its commonest words: enough to tell English from its neighbours in script."""

import re

_ENGLISH = """
    the a an and or of to in on at with without for from by is are be was it its this that these those as than more less
    but not no same some one two three there into over under up down out off only other both all has have make change
    add remove replace put turn show take instead different color image picture
"""
_OTHERS = {
    "German": """
        der das den dem des ein eine einen einem einer und oder mit ohne von vom zu zum zur im ist sind nicht
        kein keine statt mehr weniger auf aus bei es mach mache soll füge entferne ändere ersetze gleiche
        gleichen anstelle hat auch
    """,
    "French": """
        le la les un une des du et ou avec sans de d l dans sur est sont pas plus moins au aux en pour qui ce
        cette son sa même fais rends ajoute enlève remplace mets supprime lieu
    """,
    "Spanish": """
        el la los las un una unos unas y o con sin de del en es son más menos por para que su al lo haz cambia
        añade quita pon reemplaza elimina mismo misma hazlo lugar
    """,
    "Italian": """
        il lo la gli i un una uno e o con senza di del della dei delle in è sono più meno per che su al alla nel
        nella rendi cambia aggiungi togli rimuovi sostituisci metti stesso stessa invece
    """,
    "Portuguese": """
        o os as um uma e ou com sem de do da dos das em no na nos nas é são mais menos por para que seu sua ao à
        faça mude adicione remova troque coloque mesmo mesma lugar
    """,
    "Dutch": """
        de het een en of met zonder van in op is zijn niet geen meer minder voor die dat naar bij aan maak
        verander voeg verwijder vervang zet dezelfde hetzelfde plaats
    """,
}
_COMMON = {word: frozenset(words.split()) - frozenset(_ENGLISH.split()) for word, words in _OTHERS.items()}
_OWN = frozenset(_ENGLISH.split())
_FEWEST = 2


def foreign_language(text: str) -> str:
    """The language of which a text has more common words than of English, and two at least; empty: none."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {name: sum(word in common for word in words) for name, common in _COMMON.items()}
    name = max(counts, key=lambda language: counts[language])
    return name if counts[name] >= max(_FEWEST, 1 + sum(word in _OWN for word in words)) else ""
