// Browses the examples that two rows answered differently. The data lie in the page itself.
(function () {
  const data = JSON.parse(document.getElementById("changed-data").textContent);
  const find = (name) => document.getElementById("changed-" + name);
  const [pairs, tasks, ways, words, list] = ["pair", "task", "way", "words", "list"].map(find);
  const AT_ONCE = 25;
  let shown = AT_ONCE;

  const option = (select, value, text) => {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  };
  data.pairs.forEach((pair, n) =>
    option(pairs, n, data.labels[pair.first] + " → " + data.labels[pair.second])
  );
  option(tasks, "", "all tasks");
  data.tasks.forEach((task, n) => option(tasks, n, task));

  const put = (parent, tag, css, text) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };

  const draw = () => {
    const pair = data.pairs[pairs.value];
    const wanted = words.value.toLowerCase();
    const chosen = pair.groups.filter(
      (group) =>
        (tasks.value === "" || group.task === Number(tasks.value)) &&
        (ways.value === "" || group.way === ways.value)
    );
    const all = chosen.reduce((sum, group) => sum + group.count, 0);
    const within = chosen
      .flatMap((group) => group.examples.map((n) => data.examples[n]))
      .filter(
        (example) =>
          !wanted ||
          [example.inputs, example.target, example.id, ...example.answers]
            .join("\n")
            .toLowerCase()
            .includes(wanted)
      );
    list.replaceChildren();
    const count = (n) => n.toLocaleString("en");
    put(
      list,
      "p",
      "note",
      all === 0
        ? "No example changed so."
        : `${count(all)} examples changed so; the page holds ${count(within.length)} of them` +
            `${wanted ? " with these words" : ""}, the largest changes first.`
    );
    within.slice(0, shown).forEach((example) => {
      const box = put(list, "div", "example");
      put(box, "div", "soft", `${data.tasks[example.task]} · ${example.id}`);
      put(box, "div", "asked", example.inputs);
      const answers = put(box, "dl");
      put(answers, "dt", "", "target");
      put(answers, "dd", "score", "");
      put(answers, "dd", "", example.target);
      [pair.first, pair.second].forEach((row) => {
        put(answers, "dt", "", data.labels[row]);
        const score = example.scores[row];
        put(answers, "dd", "score", score === null ? "–" : score.toFixed(1));
        put(answers, "dd", "", example.answers[row] === "" ? "(empty)" : example.answers[row]);
      });
    });
    if (within.length > shown) {
      const more = put(list, "button", "", `show more (${within.length - shown})`);
      more.onclick = () => {
        shown += AT_ONCE;
        draw();
      };
    }
  };
  const again = () => {
    shown = AT_ONCE;
    draw();
  };
  [pairs, tasks, ways].forEach((select) => select.addEventListener("change", again));
  words.addEventListener("input", again);
  draw();
})();
