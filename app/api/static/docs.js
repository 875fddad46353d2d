// The addresses are relative, so that the page works behind a path prefix too.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  // The validator badge would ask a server elsewhere.
  validatorUrl: null,
});
