"""The table that maps solyanka's 250 raw tags to ten spending categories.

A line usually carries several tags (``["duty_free", "airport", "shopping"]``). The first row of
:data:`TABLE` with any of them gives the category, so specific tags come first and vague ones
(``shopping``, ``services``) last. Tags in :data:`SILENT` carry no information about what was
bought. A line with no other tags is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

BILLS = "bills and services"
DIGITAL = "digital services"
EATING_OUT = "eating out"
GROCERIES = "groceries"
HEALTH = "health and beauty"
LEISURE = "leisure"
MONEY = "money"
SHOPPING = "shopping"
TRANSPORT = "transport"
TRAVEL = "travel"

CATEGORIES = (
    BILLS,
    DIGITAL,
    EATING_OUT,
    GROCERIES,
    HEALTH,
    LEISURE,
    MONEY,
    SHOPPING,
    TRANSPORT,
    TRAVEL,
)


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in text.split(","))


TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        MONEY,
        _tags(
            "fintech, wallet, payment, financial, finance, bank, transfer, cryptocurrency, "
            "exchange, trading"
        ),
    ),
    (
        BILLS,
        _tags(
            "utilities, telecom, telecommunication, communications, communication, mobile_topup, "
            "energy, government, education, tuition, insurance, legal, property, real estate, "
            "leasing, logistics, shipping, post_office, laundry, home_services, coworking, office, "
            "consulting, construction"
        ),
    ),
    (
        TRAVEL,
        _tags(
            "hotel, accommodation, resort, hospitality, airline, aviation, booking, housing, "
            "luggage_storage"
        ),
    ),
    (
        GROCERIES,
        _tags(
            "groceries, grocery, supermarket, hypermarket, convenience_store, convenience, "
            "wholesale, organic, fruit"
        ),
    ),
    (
        EATING_OUT,
        _tags(
            "restaurant, dining, fine_dining, cafe, coffee, fast_food, fast food, bakery, "
            "dessert, icecream, ice_cream, tea, bar, pub, food_delivery, street_food, "
            "street_vendor, deli, sandwiches, pizza, noodles, breakfast, night_snack, italian, "
            "vietnamese, vegetarian, mediterranean, middle_eastern, culinary"
        ),
    ),
    (
        HEALTH,
        _tags(
            "pharmacy, drugstore, medicine, health, healthcare, medical, telemedicine, hospital, "
            "clinic, doctor, dental, dentist, optical, wellness, spa, beauty, salon, nail salon, "
            "laser, personal_care, barbershop, fitness, gym"
        ),
    ),
    (
        TRANSPORT,
        _tags(
            "transportation, transport, transit, public_transport, metro, train, taxi, "
            "ride_hailing, ride_sharing, rideshare, uber, bike_sharing, scooter_rental, "
            "micromobility, car_rental, parking, fuel, gas_station, gas, car_service, car_wash, "
            "automotive, auto"
        ),
    ),
    (
        LEISURE,
        _tags(
            "cinema, movies, streaming, gaming, concert, tickets, ticketing, museum, art, "
            "performing_arts, cultural, wildlife, nightlife, tourism, hookah, dating, "
            "adult_entertainment, entertainment"
        ),
    ),
    (
        SHOPPING,
        _tags(
            "clothing, fashion, accessories, jewelry, luxury, cosmetics, electronics, appliances, "
            "computer, books, bookstore, stationery, furniture, home_goods, home_improvement, "
            "home, household, diy, hardware, tools, department_store, duty_free, ecommerce, "
            "e-commerce, social_commerce, online_shopping, marketplace, chinese_marketplace, "
            "market, gold, souvenir, gifts, flowers, baby, kids, vape, cigar, thrift, pets, "
            "pet_care, grooming, veterinary"
        ),
    ),
    (
        DIGITAL,
        _tags(
            "software, application, ai_service, vpn, digital_services, online_services, "
            "digital_goods, digital_store, digital_content, verification, internet, technology"
        ),
    ),
    (SHOPPING, _tags("shopping, retail, shop, local_store")),
    (EATING_OUT, _tags("food, snack, snacks, gourmet, beverages, beverage, alcohol, winery, wine")),
    (TRAVEL, _tags("travel, traveling, tour, airport")),
    (LEISURE, _tags("leisure, recreation, culture, club, beach, music, sports, hobby")),
    (BILLS, _tags("mobile, top_up, delivery")),
    (MONEY, _tags("online_payment, paypal, tip")),
    (DIGITAL, _tags("subscription")),
    (
        BILLS,
        _tags("services, service, business, design, photography, tattoo, institution, membership"),
    ),
)

SILENT = frozenset(
    _tags(
        "ai_generated, online, location, general, vending, authorization, custom, traditional, "
        "donation, lifestyle, experience"
    )
)


def category_of(tags: Iterable[str]) -> str | None:
    """The category of a line with these raw tags; None if they are all in :data:`SILENT`."""
    present = set(tags)
    return next((name for name, row in TABLE if not present.isdisjoint(row)), None)
