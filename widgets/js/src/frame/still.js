// The still: the picture of a widget in the output below it, for notebooks without a kernel.

import { element } from "./dom.js";

/**
 * While it is in the page, the still of this widget is hidden.
 * @param {string} name class of the still
 */
export function hidesStill(name) {
  const safe = name.replace(/[^\w-]/g, "");
  const style = element("style");
  style.textContent = safe ? `.${safe},.jp-OutputArea-child:has(.${safe}){display:none!important}` : "";
  return style;
}

/**
 * Sees to it that the still in the notebook is the newest. The kernel updates it as a display, which reaches only the
 * page that ran the cell. After a reload, the view asks for it and puts it into JupyterLab's model of the notebook.
 * @param {import("./line.js").Model} model
 * @param {{request: (content: any) => Promise<boolean>}} link
 */
export function stillKeeper(model, link) {
  let timer = /** @type {any} */ (null);
  let newest = 0; // revision that this page has asked for
  /** @param {import("./messages.js").LineMessage} message */
  function receive({ still, revision, bundle }) {
    const cells = model.widget_manager?.context?.model?.cells;
    if (!cells) return;
    if (bundle) return replace(cells, still, bundle);
    if (revision <= newest) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      const revisions = [...document.getElementsByClassName(still)].map((node) =>
        Number(node.getAttribute("data-revision")),
      );
      if (!revisions.length || Math.min(...revisions) >= revision) return;
      newest = revision;
      link.request({ kind: "still" });
    }, 700);
  }
  return { receive, dispose: () => clearTimeout(timer) };
}

/** @param {any} cells @param {string} name @param {Record<string, string>} bundle */
function replace(cells, name, bundle) {
  for (let at = 0; at < cells.length; at += 1) {
    const outputs = cells.get(at).outputs;
    for (let index = 0; index < (outputs?.length ?? 0); index += 1) {
      const output = outputs.get(index).toJSON();
      if (JSON.stringify(output.data?.["text/html"] ?? "").includes(name))
        outputs.set(index, { ...output, data: bundle });
    }
  }
}
