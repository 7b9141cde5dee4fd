"""Sentences of seven languages from small word lists: enough for a language detector, endless enough for shingles.

A sentence is `[place,] noun verb noun [place] [join noun verb noun [place]]`. Nouns carry their article, so that no
word has to agree with another. Every draw comes from the caller's `Draw`, a stream of hashed numbers: the same key
gives the same text on every machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Numbers that depend on the key alone: BLAKE2b of key and counter, 64 bits a draw."""

    def __init__(self, *key: object) -> None:
        self._key = "\0".join(map(str, key)).encode()
        self._count = 0
        self._pool: list[int] = []

    def bits(self) -> int:
        """The next 64 bits."""
        if not self._pool:
            block = hashlib.blake2b(self._count.to_bytes(8, "little") + self._key).digest()
            self._pool = list(struct.unpack("<8Q", block))
            self._count += 1
        return self._pool.pop()

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return self.bits() % n

    def unit(self) -> float:
        """A number in [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def pick(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.bits() % len(values)]


@dataclass(frozen=True)
class Language:
    """A language's words: nouns with article, verbs of the third person, phrases of place or time, conjunctions."""

    code: str
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    places: tuple[str, ...]
    joins: tuple[str, ...]
    charset: str

    def sentence(self, draw: Draw) -> str:
        """One sentence with capital and full stop, 5 to 30 words."""
        parts = []
        if draw.below(3) == 0:
            parts.append(draw.pick(self.places) + ",")
        parts += self._clause(draw)
        if draw.below(2):
            parts += [draw.pick(self.joins), *self._clause(draw)]
        text = " ".join(parts)
        return text[0].upper() + text[1:] + "."

    def _clause(self, draw: Draw) -> list[str]:
        parts = [draw.pick(self.nouns), draw.pick(self.verbs), draw.pick(self.nouns)]
        if draw.below(2):
            parts.append(draw.pick(self.places))
        return parts

    def words(self, draw: Draw, count: int) -> list[str]:
        """Single words without articles, for titles, menus and keyword lists."""
        return [draw.pick(self.nouns).split()[-1].split("'")[-1] for _ in range(count)]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


ENGLISH = Language(
    "en",
    _split(
        "the river|the old bridge|a young teacher|the harbour|a farmer|the market|the council|a painter|the engine|"
        "the garden|a traveller|the library|the captain|a lantern|the valley|the orchestra|a neighbour|the forest|"
        "the railway|a merchant|the kitchen|the doctor|a carpenter|the museum|the mountain|a letter|the village|"
        "the winter|a gardener|the machine|the student|a shepherd|the castle|the journal|a sailor|the factory|"
        "the weather|a musician|the island|the history|a clerk|the laboratory|the meadow|a violin|the committee|"
        "the newspaper|a window|the telescope"
    ),
    _split(
        "carries|follows|remembers|crosses|describes|repairs|watches|protects|discovers|measures|welcomes|changes|"
        "visits|supports|explains|collects|answers|surrounds|replaces|teaches|observes|prepares|improves|admires|"
        "reaches|forgets|connects|questions|preserves|imagines|avoids|delivers|examines|restores|surprises|needs"
    ),
    _split(
        "in the early morning|behind the old station|with great patience|near the northern coast|after the long war|"
        "without any hurry|before the first snow|on the other side|during the summer months|at the end of the road|"
        "under a grey sky|between two hills|for many years|with the help of friends|along the quiet canal|"
        "in a small workshop|beyond the last houses|at the beginning of spring|on most days|around the main square|"
        "in spite of the rain|by the light of a candle|from time to time|across the wide plain"
    ),
    _split("and|because|although|while|but|so that|until|where|since|whenever"),
    "utf-8",
)

GERMAN = Language(
    "de",
    _split(
        "der Fluss|die alte Brücke|ein junger Lehrer|der Hafen|die Bäuerin|der Markt|die Gemeinde|ein Maler|"
        "die Maschine|der Garten|ein Reisender|die Bücherei|der Kapitän|die Laterne|das Tal|das Orchester|"
        "der Nachbar|der Wald|die Eisenbahn|ein Händler|die Küche|die Ärztin|der Tischler|das Museum|das Gebirge|"
        "ein Brief|das Dorf|der Winter|die Gärtnerin|der Schüler|die Schäferin|das Schloss|die Zeitung|ein Matrose|"
        "das Werk|das Wetter|die Musikerin|die Insel|die Geschichte|der Schreiber|das Labor|die Wiese|eine Geige"
    ),
    _split(
        "trägt|verfolgt|erinnert|überquert|beschreibt|repariert|beobachtet|schützt|entdeckt|misst|begrüßt|verändert|"
        "besucht|unterstützt|erklärt|sammelt|beantwortet|umgibt|ersetzt|unterrichtet|betrachtet|verbessert|"
        "bewundert|erreicht|vergisst|verbindet|befragt|bewahrt|vermeidet|liefert|untersucht|überrascht|braucht"
    ),
    _split(
        "am frühen Morgen|hinter dem alten Bahnhof|mit großer Geduld|an der nördlichen Küste|nach dem langen Krieg|"
        "ohne jede Eile|vor dem ersten Schnee|auf der anderen Seite|während der Sommermonate|am Ende der Straße|"
        "unter grauem Himmel|zwischen zwei Hügeln|seit vielen Jahren|mit der Hilfe von Freunden|entlang des Kanals|"
        "in einer kleinen Werkstatt|jenseits der letzten Häuser|zu Beginn des Frühlings|an den meisten Tagen|"
        "trotz des Regens|bei Kerzenlicht|von Zeit zu Zeit|über die weite Ebene"
    ),
    _split("und|aber|denn|oder|doch|sondern"),
    "iso-8859-1",
)

FRENCH = Language(
    "fr",
    _split(
        "la rivière|le vieux pont|une jeune institutrice|le port|un fermier|le marché|la mairie|un peintre|le moteur|"
        "le jardin|un voyageur|la bibliothèque|le capitaine|une lanterne|la vallée|l'orchestre|un voisin|la forêt|"
        "le chemin de fer|un marchand|la cuisine|le médecin|un menuisier|le musée|la montagne|une lettre|le village|"
        "l'hiver|une jardinière|la machine|l'élève|un berger|le château|le journal|un marin|l'usine|la météo|"
        "une musicienne|l'île|l'histoire|un employé|le laboratoire|la prairie|un violon|le comité"
    ),
    _split(
        "porte|suit|rappelle|traverse|décrit|répare|regarde|protège|découvre|mesure|accueille|change|visite|soutient|"
        "explique|rassemble|entoure|remplace|enseigne|observe|prépare|améliore|admire|atteint|oublie|relie|"
        "interroge|préserve|imagine|évite|livre|examine|restaure|surprend"
    ),
    _split(
        "tôt le matin|derrière la vieille gare|avec beaucoup de patience|près de la côte du nord|après la guerre|"
        "sans aucune hâte|avant les premières neiges|de l'autre côté|pendant les mois d'été|au bout de la route|"
        "sous un ciel gris|entre deux collines|depuis de nombreuses années|avec l'aide de ses amis|le long du canal|"
        "dans un petit atelier|au-delà des dernières maisons|au début du printemps|presque tous les jours|"
        "autour de la grande place|malgré la pluie|à la lumière d'une bougie|de temps en temps"
    ),
    _split("et|parce que|mais|tandis que|jusqu'à ce que|où|puisque|lorsque"),
    "iso-8859-1",
)

SPANISH = Language(
    "es",
    _split(
        "el río|el viejo puente|una joven maestra|el puerto|un campesino|el mercado|el ayuntamiento|un pintor|"
        "el motor|el jardín|un viajero|la biblioteca|el capitán|una linterna|el valle|la orquesta|un vecino|"
        "el bosque|el ferrocarril|un comerciante|la cocina|la doctora|un carpintero|el museo|la montaña|una carta|"
        "el pueblo|el invierno|una jardinera|la máquina|el estudiante|un pastor|el castillo|el periódico|un marinero|"
        "la fábrica|el tiempo|una música|la isla|la historia|un empleado|el laboratorio|la pradera|un violín"
    ),
    _split(
        "lleva|sigue|recuerda|cruza|describe|repara|mira|protege|descubre|mide|recibe|cambia|visita|apoya|explica|"
        "recoge|responde|rodea|reemplaza|enseña|observa|prepara|mejora|admira|alcanza|olvida|conecta|pregunta|"
        "conserva|imagina|evita|entrega|examina|restaura|sorprende|necesita"
    ),
    _split(
        "por la mañana temprano|detrás de la vieja estación|con mucha paciencia|cerca de la costa norte|"
        "después de la larga guerra|sin ninguna prisa|antes de la primera nieve|al otro lado|durante el verano|"
        "al final del camino|bajo un cielo gris|entre dos colinas|desde hace muchos años|con la ayuda de los amigos|"
        "a lo largo del canal|en un pequeño taller|más allá de las últimas casas|al comienzo de la primavera|"
        "casi todos los días|alrededor de la plaza mayor|a pesar de la lluvia|a la luz de una vela"
    ),
    _split("y|porque|aunque|mientras|pero|hasta que|donde|cuando"),
    "utf-8",
)

ITALIAN = Language(
    "it",
    _split(
        "il fiume|il vecchio ponte|una giovane maestra|il porto|un contadino|il mercato|il comune|un pittore|"
        "il motore|il giardino|un viaggiatore|la biblioteca|il capitano|una lanterna|la valle|l'orchestra|un vicino|"
        "il bosco|la ferrovia|un mercante|la cucina|il medico|un falegname|il museo|la montagna|una lettera|"
        "il villaggio|l'inverno|una giardiniera|la macchina|lo studente|un pastore|il castello|il giornale|"
        "un marinaio|la fabbrica|il tempo|una musicista|l'isola|la storia|un impiegato|il laboratorio|il prato"
    ),
    _split(
        "porta|segue|ricorda|attraversa|descrive|ripara|guarda|protegge|scopre|misura|accoglie|cambia|visita|sostiene|"
        "spiega|raccoglie|circonda|sostituisce|insegna|osserva|prepara|migliora|ammira|raggiunge|dimentica|collega|"
        "interroga|conserva|immagina|evita|consegna|esamina|restaura|sorprende"
    ),
    _split(
        "di primo mattino|dietro la vecchia stazione|con molta pazienza|vicino alla costa del nord|dopo la guerra|"
        "senza alcuna fretta|prima della neve|dall'altra parte|durante i mesi estivi|alla fine della strada|"
        "sotto un cielo grigio|tra due colline|da molti anni|con l'aiuto degli amici|lungo il canale|"
        "in una piccola bottega|oltre le ultime case|all'inizio della primavera|quasi ogni giorno|"
        "intorno alla piazza|nonostante la pioggia|a lume di candela|di tanto in tanto"
    ),
    _split("e|perché|anche se|mentre|ma|finché|dove|quando"),
    "utf-8",
)

DUTCH = Language(
    "nl",
    _split(
        "de rivier|de oude brug|een jonge leraar|de haven|een boer|de markt|de gemeente|een schilder|de motor|"
        "de tuin|een reiziger|de bibliotheek|de kapitein|een lantaarn|het dal|het orkest|een buurman|het bos|"
        "de spoorweg|een koopman|de keuken|de dokter|een timmerman|het museum|het gebergte|een brief|het dorp|"
        "de winter|een tuinier|de machine|de leerling|een herder|het kasteel|de krant|een zeeman|de fabriek|"
        "het weer|een muzikant|het eiland|de geschiedenis|een klerk|het laboratorium|de weide|een viool"
    ),
    _split(
        "draagt|volgt|herinnert|kruist|beschrijft|herstelt|bekijkt|beschermt|ontdekt|meet|verwelkomt|verandert|"
        "bezoekt|ondersteunt|verklaart|verzamelt|beantwoordt|omringt|vervangt|onderwijst|verbetert|bewondert|"
        "bereikt|vergeet|verbindt|ondervraagt|bewaart|vermijdt|levert|onderzoekt|verrast"
    ),
    _split(
        "in de vroege ochtend|achter het oude station|met veel geduld|bij de noordelijke kust|na de lange oorlog|"
        "zonder enige haast|voor de eerste sneeuw|aan de overkant|tijdens de zomermaanden|aan het einde van de weg|"
        "onder een grijze hemel|tussen twee heuvels|sinds vele jaren|met de hulp van vrienden|langs de stille gracht|"
        "in een kleine werkplaats|voorbij de laatste huizen|aan het begin van de lente|op de meeste dagen|"
        "rond het grote plein|ondanks de regen|bij het licht van een kaars|van tijd tot tijd"
    ),
    _split("en|maar|want|of"),
    "utf-8",
)

RUSSIAN = Language(
    "ru",
    _split(
        "река|старый мост|молодой учитель|гавань|крестьянин|рынок|городской совет|художник|двигатель|сад|"
        "путешественник|библиотека|капитан|фонарь|долина|оркестр|сосед|лес|железная дорога|торговец|кухня|врач|"
        "плотник|музей|гора|письмо|деревня|зима|садовник|машина|студент|пастух|замок|журнал|моряк|завод|погода|"
        "музыкант|остров|история|служащий|лаборатория|луг|скрипка|комитет|газета"
    ),
    _split(
        "несёт|помнит|пересекает|описывает|чинит|видит|защищает|открывает|измеряет|встречает|меняет|посещает|"
        "поддерживает|объясняет|собирает|окружает|заменяет|учит|наблюдает|готовит|улучшает|достигает|забывает|"
        "соединяет|спрашивает|хранит|представляет|избегает|изучает|удивляет"
    ),
    _split(
        "ранним утром|за старым вокзалом|с большим терпением|у северного берега|после долгой войны|без всякой спешки|"
        "перед первым снегом|на другой стороне|в летние месяцы|в конце дороги|под серым небом|между двумя холмами|"
        "много лет подряд|с помощью друзей|вдоль тихого канала|в маленькой мастерской|за последними домами|"
        "в начале весны|почти каждый день|вокруг главной площади|несмотря на дождь|при свете свечи|время от времени"
    ),
    _split("и|потому что|хотя|пока|но|чтобы|где|когда"),
    "windows-1251",
)

LANGUAGES = {each.code: each for each in (ENGLISH, GERMAN, FRENCH, SPANISH, ITALIAN, DUTCH, RUSSIAN)}
