"""General English texts that measure what a base forgets; written for this project.

They are fixed: a change makes figures of different releases incomparable.
"""

from __future__ import annotations

GENERAL_TEXTS = (
    "The sun rises in the east and sets in the west, and on a clear evening the sky turns from "
    "blue to orange before it becomes dark.",
    "Water freezes at zero degrees Celsius and boils at one hundred degrees at sea level.",
    "A week has seven days, a year has twelve months, and every fourth year February has one day "
    "more than usual.",
    "The heart pumps blood through the arteries to all parts of the body, and the veins carry it "
    "back.",
    "Plants take in carbon dioxide and water and, with the light of the sun, turn them into sugar "
    "and oxygen.",
    "The Earth moves around the Sun once a year, while the Moon moves around the Earth about once "
    "a month.",
    "Iron is heavier than wood, so an iron nail sinks in water while a wooden stick floats.",
    "Paris is the capital of France, Rome is the capital of Italy, and Madrid is the capital of "
    "Spain.",
    "The Amazon carries more water to the sea than any other river in the world.",
    "A triangle has three sides, and the sum of its angles is one hundred and eighty degrees.",
    "Question: What do bees make from the nectar of flowers? Answer: They make honey, which they "
    "store in the hive for the winter.",
    "Question: How many legs does a spider have? Answer: A spider has eight legs, while an insect "
    "has six.",
    "Question: Why do we see lightning before we hear thunder? Answer: Because light travels much "
    "faster than sound.",
    "Question: If a train leaves at nine and arrives at half past eleven, how long does the "
    "journey take? Answer: It takes two and a half hours.",
    "Question: I have twelve apples and give five of them away. How many are left? Answer: Seven "
    "apples are left.",
    "Question: What is the opposite of hot? Answer: The opposite of hot is cold.",
    "Question: Which month comes after April? Answer: The month after April is May.",
    "Question: What should you do before you cross a street? Answer: Stop, look to the left and "
    "to the right, and cross only when no car is coming.",
    "To boil an egg, put it into a small pot, cover it with cold water, bring the water to a "
    "boil, and wait for about eight minutes.",
    "Before you paint a wall, clean it, cover the floor with old newspapers, and put tape over "
    "the edges of the windows.",
    "If your computer does not start, check first whether it is plugged in, then whether the "
    "screen is switched on.",
    "To get to the station, go straight ahead to the traffic lights, turn right, and walk past "
    "the church until you see the clock.",
    "First mix the flour with the sugar, then add the butter and two eggs, and bake the cake in "
    "the oven for forty minutes.",
    "Dear Anna, thank you very much for your letter. I was happy to hear that you arrived safely "
    "and that you like your new room.",
    "Good morning, I would like to change my appointment from Monday to Thursday afternoon, if "
    "that is possible.",
    "We are sorry that your order arrived late, and we will send you the missing part at no cost.",
    "The meeting has been moved to three o'clock because two of our colleagues are still on their "
    "way from the airport.",
    "Once upon a time an old man lived with his dog in a small house at the edge of the forest, "
    "and every morning they walked down to the river.",
    "She opened the door slowly, looked into the dark room, and saw that someone had left a "
    "letter on the table.",
    "When the rain stopped, the children ran out of the house and jumped into every puddle that "
    "they could find.",
    "He had forgotten his umbrella again, so he waited under the roof of the bus stop until the "
    "worst of the storm was over.",
    "The old bridge was closed last winter, and since then the people of the village have had to "
    "drive ten miles to reach the town.",
    "Although the team lost its first three games, it won the next five and finished the season "
    "in second place.",
    "Prices rose by two percent last year, mainly because food and energy became more expensive.",
    "The city plans to plant a thousand trees along its main streets, which should give shade in "
    "summer and keep the air clean.",
    "Scientists compare two groups so that they can find out whether a new medicine works better "
    "than no treatment at all.",
    "A good friend is someone who listens to you, tells you the truth, and stays with you when "
    "things go wrong.",
    "Reading a little every day is easier than reading a long book in one weekend, and you "
    "remember more of it.",
    "Many people believe that money makes them happy, but most of them also say that health and "
    "family matter more.",
    "In a democracy the citizens elect their government, and the courts make sure that the laws "
    "apply to everyone in the same way.",
)
