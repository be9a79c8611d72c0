// Texts and places in them. The page counts UTF-16 units as the browser does; rows and the server count code points.

const characters = new Intl.Segmenter(undefined, { granularity: "grapheme" });
const words = new Intl.Segmenter(undefined, { granularity: "word" });

// The UTF-16 unit at which each code point of a text begins, and its length at the end.
export function unitsOf(text) {
  const units = [];
  for (let unit = 0; unit < text.length; unit += text.codePointAt(unit) > 0xffff ? 2 : 1) units.push(unit);
  return [...units, text.length];
}

// Places between the characters of a text as readers see them: an emoji or a letter with its accents is one.
export const bordersOf = (text) => [...Array.from(characters.segment(text), (part) => part.index), text.length];

// Words and punctuation marks of a text, as [start, end].
export function wordsOf(text) {
  return Array.from(words.segment(text), ({ index, segment }) => [index, index + segment.length, segment])
    .filter(([, , segment]) => segment.trim()).map(([start, end]) => [start, end]);
}

// A selection without spaces at its ends that cuts no character in two; null if nothing is left.
export function whole(text, borders, [start, end]) {
  start = borders.findLast((border) => border <= start);
  end = borders.find((border) => border >= end);
  const part = text.slice(start, end);
  if (!part.trim()) return null;
  return [start + part.length - part.trimStart().length, end - (part.length - part.trimEnd().length)];
}

// The part of a DOM range inside `root`, as [start, end] in the text of `root`; null if they do not meet.
export function partIn(root, range) {
  if (!range.intersectsNode(root)) return null;
  const all = document.createRange();
  all.selectNodeContents(root);
  const starts = range.compareBoundaryPoints(Range.START_TO_START, all) > 0;
  const ends = range.compareBoundaryPoints(Range.END_TO_END, all) < 0;
  return [
    starts ? unitOf(root, range.startContainer, range.startOffset) : 0,
    ends ? unitOf(root, range.endContainer, range.endOffset) : all.toString().length,
  ];
}

// Place of a node and offset of a DOM selection in the text of `root`.
export function unitOf(root, node, offset) {
  const range = document.createRange();
  range.selectNodeContents(root);
  range.setEnd(node, offset);
  return range.toString().length;
}

// Node and offset of a place in the text of `root`.
export function nodeAt(root, unit) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  while (node && unit > node.length) {
    unit -= node.length;
    node = walker.nextNode();
  }
  return node ? [node, unit] : [root, 0];
}
