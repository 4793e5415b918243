// A small Markdown renderer that only ever builds DOM nodes: what a model writes never becomes HTML, and links lead
// only to http(s). Headings, paragraphs, lists, quotes, tables, rules, code blocks; bold, italics, code, links.
"use strict";

const Markdown = (() => {
  function element(name, ...children) {
    const node = document.createElement(name);
    node.append(...children);
    return node;
  }

  // The first of the inline forms in `text`: where it begins and ends, and the node it is.
  const INLINE = [
    {pattern: /`([^`\n]+)`/, build: (m) => element("code", m[1])},
    {pattern: /\*\*([^\n]+?)\*\*/, build: (m, d) => wrap("strong", m[1], d)},
    {pattern: /__([^\n]+?)__/, build: (m, d) => wrap("strong", m[1], d)},
    {pattern: /\*([^*\s][^*\n]*?)\*/, build: (m, d) => wrap("em", m[1], d)},
    {pattern: /\[([^\]\n]{1,300})\]\((https?:\/\/[^\s)]{1,2000})\)/, build: (m) => link(m[1], m[2])},
  ];

  function wrap(name, text, depth) {
    const node = element(name);
    inline(node, text, depth + 1);
    return node;
  }

  function link(text, href) {
    const node = element("a", text);
    node.href = href;
    node.rel = "noopener noreferrer nofollow";
    node.target = "_blank";
    return node;
  }

  function inline(parent, text, depth = 0) {
    while (text) {
      let first = null;
      if (depth < 4)
        for (const form of INLINE) {
          const match = form.pattern.exec(text);
          if (match && (!first || match.index < first.match.index)) first = {match, form};
        }
      if (!first) break;
      if (first.match.index) parent.append(text.slice(0, first.match.index));
      parent.append(first.form.build(first.match, depth));
      text = text.slice(first.match.index + first.match[0].length);
    }
    if (text) parent.append(text);
  }

  const listItem = (line) => /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/.exec(line);
  const isRule = (line) => /^\s*([-*_])(\s*\1){2,}\s*$/.test(line);
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

  function codeBlock(lines, at, out) {
    const body = [];
    let i = at + 1;
    while (i < lines.length && !/^\s*```/.test(lines[i])) body.push(lines[i++]);
    out.append(element("pre", element("code", body.join("\n"))));
    return i + 1;
  }

  function list(lines, at, out) {
    const ordered = /^\s*\d/.test(lines[at]);
    const node = element(ordered ? "ol" : "ul");
    if (ordered) node.start = parseInt(lines[at], 10) || 1;
    const indent = listItem(lines[at])[1].length;
    let i = at;
    while (i < lines.length) {
      const item = listItem(lines[i]);
      if (!item || isRule(lines[i]) || item[1].length < indent) break;
      if (item[1].length > indent + 1 && node.lastChild && indent < 12) {
        i = list(lines, i, node.lastChild);
        continue;
      }
      const entry = element("li");
      inline(entry, item[3]);
      node.append(entry);
      ++i;
    }
    out.append(node);
    return i;
  }

  function table(lines, at, out) {
    const node = element("table");
    const row = (line, cell) => {
      const tr = element("tr");
      for (const text of cells(line)) {
        const td = element(cell);
        inline(td, text);
        tr.append(td);
      }
      return tr;
    };
    node.append(element("thead", row(lines[at], "th")));
    const body = element("tbody");
    let i = at + 2;
    while (i < lines.length && lines[i].includes("|")) body.append(row(lines[i++], "td"));
    node.append(body);
    out.append(element("div", node));
    out.lastChild.className = "table";
    return i;
  }

  const isTable = (lines, i) =>
    lines[i].includes("|") && i + 1 < lines.length && /^\s*\|?\s*:?-{2,}[\s|:-]*$/.test(lines[i + 1]) && lines[i + 1].includes("|");

  function blocks(lines, out, depth) {
    let i = 0;
    while (i < lines.length) {
      const line = lines[i];
      const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
      if (!line.trim()) {
        ++i;
      } else if (/^\s*```/.test(line)) {
        i = codeBlock(lines, i, out);
      } else if (heading) {
        const node = element("h" + Math.min(heading[1].length + 2, 6));
        inline(node, heading[2]);
        out.append(node);
        ++i;
      } else if (isRule(line)) {
        out.append(element("hr"));
        ++i;
      } else if (/^\s*>/.test(line) && depth < 4) {
        const quoted = [];
        while (i < lines.length && /^\s*>/.test(lines[i])) quoted.push(lines[i++].replace(/^\s*>\s?/, ""));
        const node = element("blockquote");
        blocks(quoted, node, depth + 1);
        out.append(node);
      } else if (listItem(line)) {
        i = list(lines, i, out);
      } else if (isTable(lines, i)) {
        i = table(lines, i, out);
      } else {
        const node = element("p");
        const text = [];
        do text.push(lines[i++]);
        while (i < lines.length && lines[i].trim() && !/^\s*(```|>)|^#{1,6}\s/.test(lines[i]) && !listItem(lines[i]) && !isTable(lines, i));
        text.forEach((part, index) => {
          if (index) node.append(element("br"));
          inline(node, part);
        });
        out.append(node);
      }
    }
  }

  // Replaces what `target` holds with the rendered text.
  function render(target, text) {
    const fragment = document.createDocumentFragment();
    blocks(text.split("\n"), fragment, 0);
    target.replaceChildren(fragment);
  }

  return {render};
})();
