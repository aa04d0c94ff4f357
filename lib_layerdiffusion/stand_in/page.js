// What WebUIs give extensions' scripts (`gradioApp`, `onUiLoaded`, `onOptionsChanged`), and the page's own keys and words.
// `opts` and `tooltips` stand before this.
const loadedCallbacks = [];

function gradioApp() {
    return document;
}

function onUiLoaded(callback) {
    loadedCallbacks.push(callback);
}

// The settings can't be changed in this page.
function onOptionsChanged() {}

(function() {
    const watcher = new MutationObserver(() => {
        if (document.querySelector("#img2img_prompt textarea") !== null) {
            watcher.disconnect();
            loadedCallbacks.forEach((callback) => callback());
        }
    });
    watcher.observe(document.documentElement, {childList: true, subtree: true});

    onUiLoaded(() => Object.entries(tooltips).forEach(([name, text]) => {
        document.querySelectorAll(`#txt2img_${name}, #img2img_${name}`).forEach((button) => {
            button.title = text;
        });
    }));

    function currentTab() {
        return ["txt2img", "img2img"].find((tab) => document.querySelector(`#${tab}_prompt`).offsetParent !== null);
    }

    document.addEventListener("keydown", (event) => {
        const tab = event.key === "Enter" && (event.ctrlKey || event.metaKey) && currentTab();
        if (tab) {
            event.preventDefault();
            document.querySelector(`#${tab}_generate`).click();
        }
    }, true);

    // A word is in the prompt as soon as it is clicked, without asking the server.
    document.addEventListener("click", (event) => {
        const word = event.target.closest("button[data-prompt]");
        const prompt = word && document.querySelector(`#${currentTab()}_prompt textarea`);
        if (prompt) {
            prompt.value = word.dataset.prompt;
            prompt.dispatchEvent(new Event("input", {bubbles: true}));
        }
    });

    // A picture that is dropped on a prompt goes where its parameters are read.
    function onPrompt(event) {
        return event.dataTransfer.types.includes("Files") && event.target.closest("#txt2img_prompt, #img2img_prompt");
    }
    document.addEventListener("dragover", (event) => onPrompt(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
        const prompt = onPrompt(event);
        if (prompt) {
            event.preventDefault();
            const button = document.querySelector(`#${prompt.id.replace("_prompt", "_read")}`);
            const input = button.parentElement.querySelector("input[type=file]");
            input.files = event.dataTransfer.files;
            input.dispatchEvent(new Event("change", {bubbles: true}));
        }
    });
})();
