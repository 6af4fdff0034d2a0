document.querySelectorAll("#tensors th").forEach((th, column) => {
  th.querySelector("button").addEventListener("click", () => {
    const order = th.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    document.querySelectorAll("#tensors th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const compare = (a, b) => th.className === "text"
      ? key(a).localeCompare(key(b), "en", { numeric: true })
      : Number(key(a)) - Number(key(b));
    const body = document.querySelector("#tensors tbody");
    [...body.rows].sort((a, b) => sign * compare(a, b)).forEach(row => body.append(row));
  });
});
