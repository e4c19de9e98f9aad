package main

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/pager"
	"k8s.io/client-go/util/retry"
)

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"case": name}}, Data: data}
}

// definition makes a namespaced kind of its own for a case, waits until it is served and returns how to address it.
func definition(ctx context.Context, w *world, name string) (schema.GroupVersionResource, string, error) {
	group := fmt.Sprintf("%s.%s.example.com", name, w.namespace)
	served := schema.GroupVersionResource{Group: group, Version: "v1", Resource: "gadgets"}
	definitions := w.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	spec := map[string]any{
		"group": group, "scope": "Namespaced",
		"names": map[string]any{"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
		"versions": []any{map[string]any{
			"name": "v1", "served": true, "storage": true,
			"subresources": map[string]any{"status": map[string]any{}},
			"schema": map[string]any{"openAPIV3Schema": map[string]any{
				"type": "object",
				"properties": map[string]any{
					"spec": map[string]any{"type": "object", "properties": map[string]any{
						"size":  map[string]any{"type": "integer", "minimum": int64(1)},
						"color": map[string]any{"type": "string", "default": "blue"},
					}, "x-kubernetes-validations": []any{map[string]any{
						"rule": "self.size < 100", "message": "a gadget of 100 does not fit through the door",
					}}},
					"status": map[string]any{"type": "object", "properties": map[string]any{"phase": map[string]any{"type": "string"}}},
				},
			}},
		}},
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "gadgets." + group}, "spec": spec,
	}}
	if _, err := definitions.Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return served, group, err
	}
	return served, group, eventually(ctx, "the kind", func() (bool, error) {
		_, err := w.dynamic.Resource(served).Namespace(w.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		_, err = w.dynamic.Resource(served).Namespace(w.namespace).Create(ctx, gadget(group, "probe", 1), metav1.CreateOptions{DryRun: []string{"All"}})
		return err == nil, err
	})
}

func undefine(w *world, group string) {
	definitions := w.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	_ = definitions.Delete(context.Background(), "gadgets."+group, metav1.DeleteOptions{})
}

func gadget(group, name string, size int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": "Gadget", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"size": size},
	}}
}

func discoveryCase(ctx context.Context, w *world) error {
	client := w.typed.Discovery()
	version, err := client.ServerVersion()
	if err != nil {
		return err
	}
	_, lists, err := client.ServerGroupsAndResources()
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, list := range lists {
		for _, each := range list.APIResources {
			found[list.GroupVersion+"/"+each.Name] = true
		}
	}
	for _, name := range []string{"v1/pods/log", "v1/persistentvolumeclaims/status", "v1/serviceaccounts/token", "batch/v1/jobs", "storage.k8s.io/v1/storageclasses", "coordination.k8s.io/v1/leases"} {
		if !found[name] {
			return fmt.Errorf("%s is not listed", name)
		}
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client))
	mapping, err := mapper.RESTMapping(schema.GroupKind{Group: "batch", Kind: "Job"})
	if err != nil {
		return err
	}
	paths, err := client.OpenAPIV3().Paths()
	if err != nil {
		return err
	}
	document, err := paths["api/v1"].Schema("application/json")
	return first(err,
		expect(version.Major == "1" && version.Minor != "", "version %v", version),
		expect(mapping.Resource.Resource == "jobs" && mapping.Scope.Name() == meta.RESTScopeNameNamespace, "mapping %v", mapping),
		expect(strings.Contains(string(document), "io.k8s.api.core.v1.PersistentVolumeClaim"), "OpenAPI lacks a kind"),
	)
}

func typedCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	made, err := maps.Create(ctx, configMap("typed", map[string]string{"a": "1"}), metav1.CreateOptions{FieldManager: "go"})
	if err != nil {
		return err
	}
	other := made.DeepCopy()
	other.Data["b"] = "2"
	if other, err = maps.Update(ctx, other, metav1.UpdateOptions{}); err != nil {
		return err
	}
	made.Data["a"] = "stale"
	_, stale := maps.Update(ctx, made, metav1.UpdateOptions{})
	tries := 0
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		tries++
		current := made
		if tries > 1 {
			if current, err = maps.Get(ctx, "typed", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		current.Data["a"] = "fresh"
		_, err := maps.Update(ctx, current, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	final, err := maps.Get(ctx, "typed", metav1.GetOptions{})
	if err != nil {
		return err
	}
	generated, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "made-"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	uid, wrong := final.UID, types.UID("00000000-0000-0000-0000-000000000000")
	refused := maps.Delete(ctx, "typed", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}})
	return first(
		expect(apierrors.IsConflict(stale), "a stale update: %v", stale),
		expect(tries == 2, "%d tries", tries),
		expect(final.Data["a"] == "fresh" && final.Data["b"] == "2", "data %v", final.Data),
		expect(strings.HasPrefix(generated.Name, "made-") && len(generated.Name) == len("made-")+5, "name %q", generated.Name),
		expect(apierrors.IsConflict(refused), "a delete of another uid: %v", refused),
		maps.Delete(ctx, "typed", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}),
	)
}

func dynamicCase(ctx context.Context, w *world) error {
	served, group, err := definition(ctx, w, "dynamic")
	if err != nil {
		return err
	}
	defer undefine(w, group)
	gadgets := w.dynamic.Resource(served).Namespace(w.namespace)
	made, err := gadgets.Create(ctx, gadget(group, "g", 3), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	color, _, _ := unstructured.NestedString(made.Object, "spec", "color")
	_, tooBig := gadgets.Create(ctx, gadget(group, "big", 100), metav1.CreateOptions{})
	_, tooSmall := gadgets.Create(ctx, gadget(group, "small", 0), metav1.CreateOptions{})
	pruned := gadget(group, "pruned", 1)
	_ = unstructured.SetNestedField(pruned.Object, "x", "spec", "unknown")
	kept, err := gadgets.Create(ctx, pruned, metav1.CreateOptions{FieldValidation: "Ignore"})
	if err != nil {
		return err
	}
	_, found, _ := unstructured.NestedString(kept.Object, "spec", "unknown")
	return first(
		expect(color == "blue", "color %q was not defaulted", color),
		expect(!found, "an unknown field was kept"),
		expect(apierrors.IsInvalid(tooBig) && strings.Contains(tooBig.Error(), "does not fit through the door"), "too big: %v", tooBig),
		expect(apierrors.IsInvalid(tooSmall) && strings.Contains(tooSmall.Error(), "spec.size in body should be greater than or equal to 1"), "too small: %v", tooSmall),
	)
}

func errorsCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	_, missing := maps.Get(ctx, "absent", metav1.GetOptions{})
	if _, err := maps.Create(ctx, configMap("twice", nil), metav1.CreateOptions{}); err != nil {
		return err
	}
	_, twice := maps.Create(ctx, configMap("twice", nil), metav1.CreateOptions{})
	_, invalid := maps.Create(ctx, configMap("Not_A_Name", nil), metav1.CreateOptions{})
	status, _ := invalid.(apierrors.APIStatus)
	limited := rest.CopyConfig(w.config)
	limited.Impersonate = rest.ImpersonationConfig{UserName: "nobody-in-particular"}
	stranger, err := kubernetes.NewForConfig(limited)
	if err != nil {
		return err
	}
	_, forbidden := stranger.CoreV1().Secrets(w.namespace).List(ctx, metav1.ListOptions{})
	anonymous := rest.AnonymousClientConfig(w.config)
	anonymous.BearerToken = "not-a-token"
	unknown, err := kubernetes.NewForConfig(anonymous)
	if err != nil {
		return err
	}
	_, unauthorized := unknown.CoreV1().Secrets(w.namespace).List(ctx, metav1.ListOptions{})
	_, gone := w.dynamic.Resource(schema.GroupVersionResource{Group: "no.such.group", Version: "v1", Resource: "things"}).List(ctx, metav1.ListOptions{})
	_, selector := maps.List(ctx, metav1.ListOptions{LabelSelector: "a in (b"})
	return first(
		expect(apierrors.IsNotFound(missing), "missing: %v", missing),
		expect(missing != nil && missing.Error() == `configmaps "absent" not found`, "missing says %v", missing),
		expect(apierrors.IsAlreadyExists(twice), "twice: %v", twice),
		expect(apierrors.IsInvalid(invalid) && status != nil && len(status.Status().Details.Causes) == 1, "invalid: %v", invalid),
		expect(apierrors.IsForbidden(forbidden) && strings.Contains(forbidden.Error(), `User "nobody-in-particular" cannot list resource "secrets"`), "forbidden: %v", forbidden),
		expect(apierrors.IsUnauthorized(unauthorized), "unauthorized: %v", unauthorized),
		expect(apierrors.IsBadRequest(selector), "a broken selector: %v", selector),
		expect(apierrors.IsNotFound(gone), "an unknown group: %v", gone),
	)
}

// warnings collects what the server warns of.
type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(code int, _ string, text string) {
	w.texts = append(w.texts, fmt.Sprintf("%d %s", code, text))
}

func validationCase(ctx context.Context, w *world) error {
	heard := &warnings{}
	config := rest.CopyConfig(w.config)
	config.WarningHandler = heard
	own, err := newWorld(config, w.namespace)
	if err != nil {
		return err
	}
	maps := own.dynamic.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace(w.namespace)
	object := func(name string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "dat": map[string]any{"a": "b"},
		}}
	}
	_, strict := maps.Create(ctx, object("strict"), metav1.CreateOptions{FieldValidation: "Strict"})
	_, warned := maps.Create(ctx, object("warned"), metav1.CreateOptions{FieldValidation: "Warn"})
	said := len(heard.texts)
	_, ignored := maps.Create(ctx, object("ignored"), metav1.CreateOptions{FieldValidation: "Ignore"})
	return first(warned, ignored,
		expect(apierrors.IsBadRequest(strict) && strings.Contains(strict.Error(), `strict decoding error: unknown field "dat"`), "strict: %v", strict),
		expect(said == 1 && heard.texts[0] == `299 unknown field "dat"`, "warned of %v", heard.texts),
		expect(len(heard.texts) == 1, "ignored, but warned of %v", heard.texts),
	)
}

func patchesCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	if _, err := maps.Create(ctx, configMap("patched", map[string]string{"a": "1", "b": "2"}), metav1.CreateOptions{}); err != nil {
		return err
	}
	steps := []struct {
		kind types.PatchType
		body string
	}{
		{types.JSONPatchType, `[{"op":"test","path":"/data/a","value":"1"},{"op":"replace","path":"/data/a","value":"json"}]`},
		{types.MergePatchType, `{"data":{"b":null,"c":"merge"}}`},
		{types.StrategicMergePatchType, `{"metadata":{"finalizers":["example.com/one"]},"data":{"d":"strategic"}}`},
		{types.StrategicMergePatchType, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["example.com/one"]}}`},
	}
	for _, each := range steps {
		if _, err := maps.Patch(ctx, "patched", each.kind, []byte(each.body), metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("%s: %w", each.kind, err)
		}
	}
	_, failed := maps.Patch(ctx, "patched", types.JSONPatchType, []byte(`[{"op":"test","path":"/data/a","value":"other"}]`), metav1.PatchOptions{})
	final, err := maps.Get(ctx, "patched", metav1.GetOptions{})
	if err != nil {
		return err
	}
	return first(
		expect(fmt.Sprint(final.Data) == "map[a:json c:merge d:strategic]", "data %v", final.Data),
		expect(len(final.Finalizers) == 0, "finalizers %v", final.Finalizers),
		expect(apierrors.IsInvalid(failed), "a failed test: %v", failed),
	)
}

func applyCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	config := func(data map[string]string) *applycore.ConfigMapApplyConfiguration {
		return applycore.ConfigMap("applied", w.namespace).WithData(data)
	}
	if _, err := maps.Apply(ctx, config(map[string]string{"a": "1", "b": "1"}), metav1.ApplyOptions{FieldManager: "one"}); err != nil {
		return err
	}
	_, conflict := maps.Apply(ctx, config(map[string]string{"a": "2"}), metav1.ApplyOptions{FieldManager: "two"})
	if _, err := maps.Apply(ctx, config(map[string]string{"a": "2"}), metav1.ApplyOptions{FieldManager: "two", Force: true}); err != nil {
		return err
	}
	if _, err := maps.Apply(ctx, config(map[string]string{"c": "1"}), metav1.ApplyOptions{FieldManager: "one"}); err != nil {
		return err
	}
	final, err := maps.Get(ctx, "applied", metav1.GetOptions{})
	if err != nil {
		return err
	}
	mine, err := applycore.ExtractConfigMap(final, "one")
	if err != nil {
		return err
	}
	return first(
		expect(apierrors.IsConflict(conflict) && strings.Contains(conflict.Error(), `conflict with "one": .data.a`), "conflict: %v", conflict),
		expect(fmt.Sprint(final.Data) == "map[a:2 c:1]", "data %v", final.Data),
		expect(fmt.Sprint(mine.Data) == "map[c:1]", "the first manager owns %v", mine.Data),
	)
}

func statusCase(ctx context.Context, w *world) error {
	claims := w.typed.CoreV1().PersistentVolumeClaims(w.namespace)
	class := "no-such-class"
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "status"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimLost},
	}
	made, err := claims.Create(ctx, claim, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	changed := made.DeepCopy()
	changed.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: "Resizing", Status: "True"}}
	changed.Spec.Resources.Requests["storage"] = resource.MustParse("5Gi")
	final, err := claims.UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	return first(
		expect(made.Status.Phase == corev1.ClaimPending, "a created claim is %s", made.Status.Phase),
		expect(*made.Spec.VolumeMode == corev1.PersistentVolumeFilesystem, "mode %v", *made.Spec.VolumeMode),
		expect(len(final.Status.Conditions) == 1, "conditions %v", final.Status.Conditions),
		expect(final.Spec.Resources.Requests.Storage().String() == "1Gi", "the main object was written through its status"),
		claims.Delete(ctx, "status", metav1.DeleteOptions{}),
	)
}

func pagerCase(ctx context.Context, w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	for i := range 7 {
		object := configMap(fmt.Sprintf("page-%d", i), nil)
		object.Labels["paged"] = "yes"
		if _, err := maps.Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	requests, names := 0, []string{}
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		requests++
		return maps.List(ctx, options)
	})
	pages.PageSize = 3
	err := pages.EachListItem(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{"paged": "yes"}).String()}, func(object runtime.Object) error {
		names = append(names, object.(*corev1.ConfigMap).Name)
		return nil
	})
	return first(err,
		expect(strings.Join(names, " ") == "page-0 page-1 page-2 page-3 page-4 page-5 page-6", "names %v", names),
		expect(requests == 3, "%d requests", requests),
	)
}

func metadataCase(ctx context.Context, w *world) error {
	client, err := metadata.NewForConfig(w.config)
	if err != nil {
		return err
	}
	maps := client.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace(w.namespace)
	if _, err := w.typed.CoreV1().ConfigMaps(w.namespace).Create(ctx, configMap("bare", map[string]string{"a": "1"}), metav1.CreateOptions{}); err != nil {
		return err
	}
	found, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "case=bare"})
	if err != nil {
		return err
	}
	one, err := maps.Get(ctx, "bare", metav1.GetOptions{})
	if err != nil {
		return err
	}
	return first(
		expect(len(found.Items) == 1 && found.Items[0].Labels["case"] == "bare", "items %v", found.Items),
		expect(one.Name == "bare" && one.UID != "", "metadata %v", one),
	)
}
