// Runs before the first paint (a blocking script in the head), so that a chosen theme never flashes.
// Not a module: modules are deferred.
(function () {
  const stored = localStorage.getItem("tailwatch-theme");
  if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
})();
