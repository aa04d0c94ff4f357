// Refreshes LayerDiffusion's status line when a generation ends, good or bad: a WebUI shows its Interrupt button, or
// what replaces it while it interrupts, only during a generation.
(function() {
    function shown(button) {
        return button !== null && getComputedStyle(button).display !== "none";
    }

    function watch(tab) {
        const page = gradioApp();
        const buttons = ["interrupt", "interrupting"].map((name) => page.querySelector(`#${tab}_${name}`));
        let running = false;
        const observer = new MutationObserver(() => {
            const wasRunning = running;
            running = buttons.some(shown);
            const refresh = page.querySelector(`#script_${tab}_layerdiffuse_refresh`);
            // Nobody looks at a closed panel, and opening it refreshes the line anyway.
            if (wasRunning && !running && refresh !== null && refresh.offsetParent !== null) {
                refresh.click();
            }
        });
        buttons.filter((button) => button !== null).forEach((button) => {
            observer.observe(button, {attributes: true, attributeFilter: ["style", "class"]});
        });
    }

    onUiLoaded(() => ["txt2img", "img2img"].forEach(watch));
})();
