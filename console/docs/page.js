// The API page: Swagger UI on the document of one area at a time, because one document of everything takes seconds to lay out.
// The area stands in the address (?area=orders), so that a link leads to it. ?errors lists the error codes of all areas,
// ?errors#out_of_stock leads to one.
(function () {
  "use strict";
  const select = document.getElementById("area");
  const query = new URLSearchParams(location.search);
  const asked = query.get("area");
  if (asked && Array.from(select.options).some((option) => option.value === asked)) select.value = asked;

  function row(kind, texts) {
    const line = document.createElement("tr");
    for (const text of texts) line.appendChild(document.createElement(kind)).textContent = text === null ? "" : text;
    return line;
  }

  async function showErrors() {
    const place = document.getElementById("ui");
    document.title = "Kasma API: error codes";
    try {
      const answer = await fetch("/api/docs/errors");
      if (!answer.ok) throw new Error("/api/docs/errors answered " + answer.status);
      const table = document.createElement("table");
      table.className = "errors";
      table.appendChild(document.createElement("thead")).appendChild(row("th", ["code", "status", "message", "why", "what to do"]));
      const body = table.appendChild(document.createElement("tbody"));
      for (const error of (await answer.json()).errors) {
        const line = body.appendChild(row("td", [error.code, error.status, error.message, error.cause, error.cure]));
        line.id = error.code;
      }
      place.replaceChildren(table);
      const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (wanted) {
        wanted.className = "wanted"; // made after the page was loaded, so that :target does not find it
        wanted.scrollIntoView();
      }
    } catch (error) {
      place.textContent = "The error codes could not be read: " + error.message;
    }
  }

  function show() {
    document.title = "Kasma API: " + select.value;
    window.SwaggerUIBundle({
      url: "/openapi/" + encodeURIComponent(select.value) + ".json",
      dom_id: "#ui",
      docExpansion: "list", // one area has one tag: its operations are listed, none is opened
      deepLinking: true,
      filter: true,
      displayRequestDuration: true,
      defaultModelsExpandDepth: -1,
      validatorUrl: null, // no outside service
      withCredentials: true, // tries run with the session of this browser, or with a key given to Authorize
    });
  }

  select.addEventListener("change", () => {
    history.replaceState(null, "", "?area=" + encodeURIComponent(select.value));
    show();
  });
  if (query.has("errors")) showErrors();
  else show();
})();
