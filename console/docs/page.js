// The API page: Swagger UI on the document of one area at a time, because one document of everything takes seconds to lay out.
// The area stands in the address (?area=orders), so that a link leads to it.
(function () {
  "use strict";
  const select = document.getElementById("area");
  const asked = new URLSearchParams(location.search).get("area");
  if (asked && Array.from(select.options).some((option) => option.value === asked)) select.value = asked;

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
  show();
})();
