// LayerDiffusion's part of the page: refreshes its status lines, greys out modes that can't run, and lays a
// checkerboard behind transparent pictures.
(function() {
    const TABS = ["txt2img", "img2img"];
    const SCENE = "script_layerdiffusion_scene"; // in txt2img only
    const PICTURES = "[id$='_gallery'] img, #lightboxModal img";
    const TRANSPARENT = "layerdiffusion-transparent";
    const UNAVAILABLE = "layerdiffusion-unavailable";
    const TRIES = 15; // seconds
    const SAMPLE = 16; // pixels a side to which a picture is reduced to find its transparency

    function shown(button) {
        return button !== null && getComputedStyle(button).display !== "none";
    }

    function panelOf(tab) {
        return `script_${tab}_layerdiffuse`;
    }

    function part(panel, name) {
        return gradioApp().querySelector(`#${panel}_${name}`);
    }

    // Nobody looks at a closed panel, and opening it refreshes the line anyway.
    function refresh(panel) {
        const button = part(panel, "refresh");
        if (button !== null && button.offsetParent !== null) {
            button.click();
        }
    }

    function refreshAll() {
        [...TABS.map(panelOf), SCENE].forEach(refresh);
    }

    // When a generation ends, good or bad: a WebUI shows its Interrupt button, or what replaces it while it interrupts,
    // only during a generation.
    function followGenerations(tab) {
        const buttons = ["interrupt", "interrupting"].map((name) => gradioApp().querySelector(`#${tab}_${name}`));
        let running = buttons.some(shown);
        const observer = new MutationObserver(() => {
            const wasRunning = running;
            running = buttons.some(shown);
            if (wasRunning && !running) {
                refreshAll();
            }
        });
        buttons.filter((button) => button !== null).forEach((button) => {
            observer.observe(button, {attributes: true, attributeFilter: ["style", "class"]});
        });
    }

    // What the status says of modes that can't run; null as long as nothing was looked up.
    function readUnavailable(panel) {
        const status = gradioApp().querySelector(`#${panel}_status .layerdiffusion-status`);
        return JSON.parse((status && status.dataset.unavailable) || "null");
    }

    // A panel that is open from the start, by the user's own defaults, before its button can be clicked.
    function refreshAtStart(panel, tries) {
        if (tries > 0 && readUnavailable(panel) === null) {
            refresh(panel);
            setTimeout(() => refreshAtStart(panel, tries - 1), 1000);
        }
    }

    // The script for scenes has nothing to open: it is shown when it is chosen, and when its tab is.
    function refreshWhenShown(panel) {
        const button = part(panel, "refresh");
        if (button !== null) {
            new IntersectionObserver((entries) => {
                if (entries.some((entry) => entry.isIntersecting)) {
                    refresh(panel);
                }
            }).observe(button);
        }
    }

    // The list of modes is made anew each time that it opens.
    function greyOut(panel) {
        const mode = part(panel, "mode");
        if (mode === null) {
            return;
        }
        new MutationObserver(() => {
            const reasons = readUnavailable(panel) || {};
            mode.querySelectorAll("li").forEach((entry) => {
                const reason = reasons[entry.getAttribute("aria-label")];
                const note = entry.querySelector(".layerdiffusion-why");
                entry.classList.toggle(UNAVAILABLE, reason !== undefined);
                if (reason === undefined && note !== null) {
                    note.remove();
                } else if (reason !== undefined && (note === null || note.textContent !== reason[0])) {
                    const text = note || entry.appendChild(document.createElement("span"));
                    text.className = "layerdiffusion-why";
                    text.textContent = reason[0];
                    entry.title = reason[1];
                }
            });
        }).observe(mode, {childList: true, subtree: true});
    }

    function isTransparent(image) {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = SAMPLE;
        const context = canvas.getContext("2d");
        try {
            context.drawImage(image, 0, 0, SAMPLE, SAMPLE);
            return context.getImageData(0, 0, SAMPLE, SAMPLE).data.some((value, index) => index % 4 === 3 && value < 255);
        } catch (error) { // a picture from elsewhere, or one that isn't loaded
            return false;
        }
    }

    function mark(image) {
        const wanted = typeof opts === "undefined" || opts.layerdiffusion_checkerboard !== false;
        image.classList.toggle(TRANSPARENT, wanted && isTransparent(image));
    }

    // A loaded picture tells nobody but itself, unless it is listened for on the way down to it.
    document.addEventListener("load", (event) => {
        if (event.target instanceof HTMLImageElement && event.target.matches(PICTURES)) {
            mark(event.target);
        }
    }, true);

    if (typeof onOptionsChanged === "function") {
        onOptionsChanged(() => {
            gradioApp().querySelectorAll(PICTURES).forEach(mark);
            refreshAll(); // the checkpoint is an option, too
        });
    }
    onUiLoaded(() => {
        TABS.forEach((tab) => {
            followGenerations(tab);
            greyOut(panelOf(tab));
            refreshAtStart(panelOf(tab), TRIES);
        });
        refreshWhenShown(SCENE);
    });
})();
