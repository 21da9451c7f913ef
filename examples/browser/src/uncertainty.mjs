// Prediction with uncertainty: probabilities averaged over posterior draws, and what they leave open. All in nats.

/** Probabilities from logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The entropy -sum p log p. */
export function entropy(probabilities) {
  return -probabilities.reduce((total, p) => total + (p > 0 ? p * Math.log(p) : 0), 0);
}

/** The divergence sum p log(p / q). */
function divergence(p, q) {
  return p.reduce((total, each, label) => total + (each > 0 ? each * Math.log(each / q[label]) : 0), 0);
}

const mean = (numbers) => numbers.reduce((total, each) => total + each, 0) / numbers.length;

/**
 * Average the probabilities of draws, as `CompressedNetwork.predict_with_uncertainty` does.
 *
 * @param {number[][]} draws Probabilities of each draw.
 * @param {number} temperature T: the average p becomes softmax(log p / T).
 * @returns {{probabilities: number[], entropy: number, mutualInformation: number, lowest: number[], highest: number[],
 *   votes: number[]}} `mutualInformation` is the mean of KL(draw | average); `votes` has the likeliest label of each draw.
 */
export function summarise(draws, temperature = 1) {
  const labels = draws[0].map((_, label) => label);
  const across = (label) => draws.map((draw) => draw[label]);
  const average = labels.map((label) => mean(across(label)));
  const probabilities = softmax(average.map((p) => Math.log(Math.max(p, Number.MIN_VALUE)) / temperature));
  return {
    probabilities,
    entropy: entropy(probabilities),
    mutualInformation: Math.max(0, mean(draws.map((draw) => divergence(draw, average)))),
    lowest: labels.map((label) => Math.min(...across(label))),
    highest: labels.map((label) => Math.max(...across(label))),
    votes: draws.map(likeliest),
  };
}

/** Position of the largest probability. */
export function likeliest(probabilities) {
  return probabilities.indexOf(Math.max(...probabilities));
}

/** A probability as a percentage; never 100 % or 0 % of what is only nearly so. */
export function percent(p) {
  if (p > 0.999) return "over 99.9 %";
  if (p < 0.001) return "under 0.1 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** Two or three plain sentences on a summary. */
export function inWords(summary, labels) {
  const { probabilities, votes, mutualInformation } = summary;
  const best = likeliest(probabilities);
  const others = [...new Set(votes.filter((vote) => vote !== best))].map((vote) => labels[vote]);
  const agreeing = votes.filter((vote) => vote === best).length;
  const choices = Math.exp(summary.entropy);
  return [
    probabilities[best] > 0.9
      ? `The network is sure: ${labels[best]}.`
      : probabilities[best] > 0.6
        ? `Probably ${labels[best]}, but the network is not sure.`
        : `The network does not know. ${labels[best]} is its best guess.`,
    choices < 1.05
      ? "It leaves almost nothing open."
      : `It is about as unsure as with ${choices.toFixed(1)} labels that are equally likely.`,
    others.length === 0
      ? `All ${votes.length} draws of the weights say ${labels[best]}.`
      : `${agreeing} of ${votes.length} draws of the weights say ${labels[best]}; others say ${others.join(", ")}.`,
    summary.entropy < 0.05
      ? ""
      : `The weights account for ${percent(mutualInformation / summary.entropy)} of the doubt, the picture for the rest.`,
  ].filter(Boolean);
}
