// The smallest widget: what it shows, and what it asks for.
import { button, element } from "../../widgets/js/src/frame/dom.js";
import { frame } from "../../widgets/js/src/frame/frame.js";

/** @param {import("../../widgets/js/src/frame/frame.js").Context} context */
function render(context) {
  let count = NaN;
  const output = element("output");
  const page = frame(context, {
    label: "Counter",
    kind: "counter",
    receive: { count: (message) => (count = message.count) },
    refresh: () => (output.textContent = String(count)),
    ready: () => !Number.isNaN(count),
    state: () => ["idle", "Ready"],
  });
  const add = button("Add one", null, () => page.ask({ kind: "add", amount: 1 }));
  return page.open([page.header("Counter", [add]), page.alert, output]);
}

export default { render };
