// Reads Kubernetes objects as YAML from standard input. Fails on the first one with a kind or a
// field that the API does not have, a field that occurs twice, or a value of another type.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, monitoring.AddToScheme} {
		if err := add(types); err != nil {
			log.Fatal(err)
		}
	}
	options := json.SerializerOptions{Yaml: true, Strict: true}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, types, types, options)
	documents := yaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := documents.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		_, kind, err := strict.Decode(document, nil, nil)
		if err != nil {
			log.Fatalf("%v: %v\n%s", kind, err, document)
		}
		fmt.Println(kind.Kind)
	}
}
