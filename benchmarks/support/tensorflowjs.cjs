// Runs a TensorFlow.js graph model in node, on the backend of pure JavaScript:
//
//   node tensorflowjs.cjs FOLDER < inputs.json > outputs.json
//
// Both are {name: {shape, values}}. NODE_PATH says where @tensorflow/tfjs is.

const fs = require("fs");
const path = require("path");
console.warn = () => {};  // that tfjs-node would be faster
const tf = require("@tensorflow/tfjs");

function load(folder) {
  const file = path.join(folder, "model.json");
  const model = JSON.parse(fs.readFileSync(file, "utf8"));
  const parts = model.weightsManifest.flatMap((group) => group.paths).map(
      (name) => fs.readFileSync(path.join(folder, name)));
  const weights = Uint8Array.from(Buffer.concat(parts)).buffer;
  return {
    modelTopology: model.modelTopology,
    signature: model.signature,
    weightSpecs: model.weightsManifest.flatMap((group) => group.weights),
    weightData: weights,
  };
}

async function main(folder) {
  await tf.setBackend("cpu");
  const model = await tf.loadGraphModel({load: async () => load(folder)});
  const given = JSON.parse(fs.readFileSync(0, "utf8"));
  const inputs = {};
  for (const name of Object.keys(model.modelSignature.inputs)) {
    const key = Object.keys(given).find((each) => name.includes(each));
    inputs[model.modelSignature.inputs[name].name] =
        tf.tensor(Float32Array.from(given[key].values), given[key].shape);
  }
  const names = Object.keys(model.modelSignature.outputs);
  const nodes = names.map((name) => model.modelSignature.outputs[name].name);
  const tensors = await model.executeAsync(inputs, nodes);
  const outputs = {};
  [tensors].flat().forEach((tensor, index) => {
    outputs[names[index]] = {
      shape: tensor.shape,
      values: Array.from(tensor.dataSync()),
    };
  });
  process.stdout.write(JSON.stringify(outputs));
}

main(process.argv[2]).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
