// The addresses are relative, so that the page works behind a path prefix too.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  // The validator badge would ask a server elsewhere.
  validatorUrl: null,
  // The document cannot know by which address it is reached; its curl is to work when pasted.
  responseInterceptor: (response) => {
    if (response.url.endsWith("/openapi.json") && response.text) {
      const address = new URL(".", location.href).href.replace(/\/$/, "");
      response.text = response.text.replaceAll("http://localhost:8000", address);
    }
    return response;
  },
});

// What serves now, and what may be wrong with it. Only textContent: names and warnings can come from a file.
async function showStatus() {
  const status = document.getElementById("status");
  const warnings = document.getElementById("warnings");
  let again = 2000;
  try {
    const health = await (await fetch("healthz")).json();
    if (health.ready) {
      status.textContent = `Serving ${health.model.name} (${health.model.version}) on ${health.device}`;
      again = 15000;
    } else {
      status.textContent = health.reason || health.detail;
    }
    status.className = health.ready ? "ready" : health.state === "failed" ? "failed" : "";
    warnings.replaceChildren(
      ...(health.warnings || []).map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }),
    );
  } catch {
    status.textContent = "The service does not answer.";
    status.className = "failed";
  }
  setTimeout(showStatus, again);
}
showStatus();
