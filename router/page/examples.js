/** Questions that are one click away: the embedded pair knows one kind only, others can be asked anything. */
const POCKET = [
  "Grace starts with 69 coins and buys 2 hidden saddles, then sells 1 tiny shield, then sells 3 narrow cabinets. How many coins does she have now?",
  "What does Carl pay for 2 ivory forks, then 2 fancy drawers, then 2 white bottles?",
  "Felix orders 1 quiet rake, then 3 blue lamps, then 1 folded basket. He pays with 100 coins. What is the change?",
];
const ANY = [
  "A train leaves at 9:40 and arrives at 13:05 after a stop of 25 minutes. How long was it moving?",
  "How many positive divisors does 360 have?",
  "What is the sum of the first 50 odd numbers?",
];

export function examplesFor({ models }) {
  return isPocket(models.small) && isPocket(models.large) ? POCKET : ANY;
}

function isPocket(name) {
  return /(^|\/)pocket\b/.test(name);
}
