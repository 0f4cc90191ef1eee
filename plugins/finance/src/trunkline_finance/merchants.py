"""Group bank-statement lines by merchant, so that a merchant is held out as a unit.

A line has two names: the one printed on the statement (``4191 Boots Big C Extra P CHONBURI``) and
the package's short title (``Boots``). Each is reduced to its *brand*: digits, accents, places and
payment channels are removed, and the first remaining informative token represents the merchant.
Lines that share a brand by either name form one group, transitively. Joining two merchants by
mistake only makes a group larger; separating branches of one would leak, so doubtful cases are
joined.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence


def _tokens(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHANNELS = _tokens(
    "app atm bkg cloud com csz dd easypay ecom evp geidea ghl gks gpay line linepay lpe ltd mid "
    "mobile mp mpos net ntt omise op opn pay paygw payoo paypal payu pfa portmone pos prismalink "
    "pt pty pyx qr sct sp sumup vn vnpay www xdt ziina"
)
"""Terminals, payment services and company forms that precede the merchant's own name."""

PLACES = _tokens(
    "asok bali bangkok batumi beach berlin bkk budapest cambodia central chiang chonburi city "
    "danang dubai emsphere georgia ha hanoi hcm huahin jomtien kl krabi lisboa london madrid mai "
    "manila nang nha noi patong pattaya paulo phuket podgorica porto potsdam riga robinson "
    "robinsons saigon samui siam sukhumvit terminal thai thailand tokyo trang viet vietnam vincom"
)

GENERIC = _tokens(
    "a al and apotek asia asian baan bakery bar beauty beer best big bistro black blue boutique "
    "cafe caffe cantina casa center club coffee compra cong da de del di dos drogaria du el en "
    "family farmacia farmacija food for fresh garden gold golden grand green gym happy home hong "
    "hospital hotel house i ii il in k kafe kitchen la le les little lo los lounge love mall "
    "market mart massage mini mr mrs museum my new no nuad of old one pet pharmacy pho pizza "
    "pizzeria pub pure red resort restaurant restaurante restoran ristorante royal san sea shop "
    "sky soi spa sports star station store street studio sunset super supermarket sushi taco taxi "
    "tea th the time to top trattoria true ty uncle urban villa vinh warung white wine world"
)
"""Words that begin the names of many unrelated merchants; they are ignored."""

SPELLINGS = {
    "bk": "burger",
    "dienmayxanh": "dien",
    "fuelshack": "fuel",
    "hofbr": "hofbrau",
    "mcd": "mcdonalds",
    "mcdonald": "mcdonalds",
    "seven": "eleven",
}
"""Spelling → brand, for brands that statements spell in several ways."""

_LEET = str.maketrans("01345", "oieas")
_MIN_LENGTH = 4
"""A shorter first token gets the second one appended."""


def words_of(name: str) -> list[str]:
    """The lower-case tokens of a name without digits, accents and apostrophes.

    ``BurgerKing`` gives two tokens. Digits used as letters (``AHAM0VE``) are read as letters.
    """
    text = re.sub(r"\b7\W?11\b", "Eleven", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"\bMc(?=[A-Z])", "MC", text))
    text = unicodedata.normalize("NFKD", text.replace("’", "'"))
    text = "".join(sign for sign in text if not unicodedata.combining(sign)).lower()
    text = re.sub(r"(?<=[a-z])'(?=[a-z])", "", text)
    text = re.sub(r"(?<=[a-z])[01345](?=[a-z])", lambda hit: hit[0].translate(_LEET), text)
    return re.findall(r"[^\W\d_]+", text)


def brand_of(name: str) -> str:
    """The token or tokens that identify the merchant; the complete name if there are none."""
    tokens = words_of(name)
    if not tokens:
        return re.sub(r"\W+", " ", name).strip()
    informative = [
        token for token in tokens if token not in CHANNELS | PLACES | GENERIC and len(token) > 1
    ]
    if not informative:
        return " ".join(tokens)
    first = SPELLINGS.get(informative[0], informative[0])
    if len(first) >= _MIN_LENGTH or len(informative) == 1:
        return first
    return f"{first} {informative[1]}"


def group_by_merchant(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Return one group name per entry; entries with a common brand get the same one.

    A group is named after its most frequent brand, so the name does not depend on the order of
    the entries.
    """
    parent: dict[str, str] = {}

    def root(brand: str) -> str:
        while (above := parent.setdefault(brand, brand)) != brand:
            brand = above
        return brand

    brands = [sorted({brand_of(name) for name in entry}) for entry in names]
    for first, *others in brands:
        for other in others:
            parent[root(other)] = root(first)
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in brands:
        members[root(entry[0])].update(entry)
    titles = {
        key: min(counts, key=lambda brand: (-counts[brand], brand))
        for key, counts in members.items()
    }
    return [titles[root(entry[0])] for entry in brands]
