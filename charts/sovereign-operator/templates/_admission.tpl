{{- /* SPDX-License-Identifier: Apache-2.0
What the admission policies share. They hold in namespaces that carry sovereign.dev/sealed=true, two of them in the
release's own, without a webhook: the API server itself decides, and refuses when it cannot (failurePolicy Fail). */ -}}

{{- define "sovereign.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:sovereign-operator
{{- end -}}

{{- /* Users, as a CEL list, that may create pods with the model label: KubeRay and the operator. */ -}}
{{- define "sovereign.podCreators" -}}
{{- $kuberay := .Values.admission.podCreators | default (list (printf "system:serviceaccount:%s:kuberay-operator" .Values.kuberay.namespace)) -}}
{{- append $kuberay (include "sovereign.operatorUser" .) | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- /* CEL: whether the one who asks may break the seal. Costs 350000 of the 1000000 of an expression, so it is asked once
for each and only where everything cheaper said no. The argument is the namespace, in CEL. */ -}}
{{- define "sovereign.breakGlass" -}}
authorizer.group("sovereign.dev").resource("sovereignmodels").namespace({{ . }}).check("breakglass").allowed()
{{- end -}}

{{- /* Binds a policy in all sealed namespaces. kube-system is left out even if somebody labels it: a cluster whose own
parts cannot start is no safer. */ -}}
{{- define "sovereign.sealedBinding" }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "sovereign.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny, Audit]
  matchResources:
    namespaceSelector:
      matchLabels: {sovereign.dev/sealed: "true"}
      matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system]}
{{- end }}

{{- /* Binds a policy in the release's own namespace. */ -}}
{{- define "sovereign.releaseBinding" }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "sovereign.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny, Audit]
  matchResources:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: {{ .root.Release.Namespace }}}
{{- end }}
