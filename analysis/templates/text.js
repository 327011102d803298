"use strict";

// Shared by the scripts of the page: elements, texts of which nothing is invisible, numbers.

// Attributes come from this page's own code; texts that came with the data are only ever set as textContent.
function element(name, attributes = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) found.setAttribute(key, value);
  }
  found.append(...children);
  return found;
}

const SIGNS = new Map([[" ", "·"], ["\t", "→"], ["\n", "⏎"], ["\r", "␍"], ["\u00a0", "⍽"], ["\u202f", "⍽"]]);
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Zs}]/u;
const JOINERS = new Set(["\u200c", "\u200d"]);

// Cut a text into plain stretches and what needs a sign: [{text, kind: "plain" | "space" | "code", sign}].
function pieces(text) {
  const characters = Array.from(text);
  const found = [];
  characters.forEach((character, place) => {
    const inside = place > 0 && place < characters.length - 1;
    let kind = "plain";
    let sign = "";
    if (SIGNS.has(character)) {
      kind = "space";
      sign = SIGNS.get(character);
    } else if (HIDDEN.test(character) && !(JOINERS.has(character) && inside)) {
      kind = "code";
      sign = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    }
    const last = found.at(-1);
    if (kind === "plain" && last?.kind === "plain") last.text += character;
    else found.push({ text: character, kind, sign });
  });
  return found;
}

// Fill an element with a text. The characters themselves stay in it, so that copying gives the true text.
function fill(target, text) {
  if (text === "") {
    target.append(element("i", { class: "code", "data-sign": "∅" }));
    return target;
  }
  for (const piece of pieces(text)) {
    if (piece.kind === "plain") {
      target.append(piece.text);
    } else {
      const sort = piece.text === "\n" ? "space break" : piece.kind;
      const found = element("i", { class: sort, "data-sign": piece.sign });
      found.textContent = piece.text;
      target.append(found);
    }
  }
  return target;
}

// The same as one line of text, for names that are read aloud and for the details of a token.
function spelt(text) {
  return pieces(text).map((piece) => (piece.kind === "plain" ? piece.text : piece.sign)).join("") || "∅";
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? String(value).replaceAll("-", "−") : value;
}

function readData(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

