// Bundles each widget into ../chameleon_widgets/static, where it is committed. The same input gives the same bytes.
import { build } from "esbuild";

const WIDGETS = {
  chat: ["chat_cell"],
  images: ["reconstruction_viewer", "codebook_atlas", "code_surgery"],
  infill: ["infill_canvas"],
  inspect: ["inspector"],
  judge: ["arena"],
  runs: ["run_panel", "compare_panel"],
  standalone: ["standalone"],
  teach: ["explainer"],
};

await build({
  entryPoints: Object.entries(WIDGETS).flatMap(([folder, names]) =>
    names.flatMap((out) => ["js", "css"].map((kind) => ({ in: `src/${folder}/${out}.${kind}`, out }))),
  ),
  outdir: process.argv[2] ?? "../chameleon_widgets/static",
  bundle: true,
  format: "esm",
  target: ["es2022", "chrome111", "firefox121", "safari16.4"],
  charset: "utf8",
  minify: true,
  legalComments: "none",
  logLevel: "info",
});
