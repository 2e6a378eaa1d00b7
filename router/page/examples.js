/** Questions that are one click away: the embedded pair knows one kind only, others can be asked anything. */
const POCKET = [
  "Grace starts with 61 coins and sells 3 paper robots, then buys 3 quiet chairs, then sells 3 smoky tables. How many coins does she have now?",
  "What does Julia pay for 3 wide buckets, then 1 marble anchor, then 3 tiny trumpets?",
  "Oscar orders 1 square glove, then 3 northern robots, then 1 carved shovel. He pays with 100 coins. What is the change?",
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
