{{- define "bio.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "bio.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "bio.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "bio.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Cluster-scoped objects carry the namespace too, so that two releases do not collide. */}}
{{- define "bio.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "bio.fullname" .) }}
{{- end }}

{{- define "bio.selectorLabels" -}}
app.kubernetes.io/name: {{ include "bio.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bio.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "bio.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: batch-inference-operator
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "bio.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "bio.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "bio.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}
{{- .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- /* One value switches the mode, so it is written into the settings from here. */}}
{{- define "bio.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if hasKey $settings "watchNamespaces" }}
{{- fail "settings.watchNamespaces: set the chart's own watchNamespaces instead; the roles follow it" }}
{{- end }}
{{- if has .Release.Namespace .Values.watchNamespaces }}
{{- fail (printf "watchNamespaces names %s, the operator's own namespace: whoever may write ConfigMaps there could change the journals, and deleting it would end the operator before its jobs. Install the chart in a namespace of its own" .Release.Namespace) }}
{{- end }}
{{- if .Values.watchNamespaces }}
{{- $_ := set $settings "watchNamespaces" .Values.watchNamespaces }}
{{- end }}
{{- /* Several replicas without an election would poll several times and fight for every write. */}}
{{- if gt (int .Values.replicaCount) 1 }}
{{- $election := merge (dict "enabled" true "leaseName" (include "bio.fullname" .)) (default dict $settings.leaderElection) }}
{{- $_ := set $settings "leaderElection" $election }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- /* The ServiceAccount as the subject of a binding. */}}
{{- define "bio.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "bio.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* What the operator does with its resources wherever they live. */}}
{{- define "bio.namespacedRules" -}}
- apiGroups: [batchinference.dev]
  resources: [batchinferencejobs]
  # delete: finished ones, by their own ttlSecondsAfterFinished.
  verbs: [get, list, watch, patch, delete]
- apiGroups: [batchinference.dev]
  resources: [batchinferencejobs/status, inferenceproviders/status]
  verbs: [patch]
- apiGroups: [batchinference.dev]
  resources: [inferenceproviders]
  verbs: [get, list, watch]
# Inputs and results of tiny runs.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, update, delete]
# Whether a job is gone or its namespace is.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- define "bio.clusterScopedRules" -}}
- apiGroups: [batchinference.dev]
  resources: [clusterinferenceproviders]
  verbs: [get, list, watch]
- apiGroups: [batchinference.dev]
  resources: [clusterinferenceproviders/status]
  verbs: [patch]
# Whether a job is gone or its definition is.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames:
    - batchinferencejobs.batchinference.dev
    - inferenceproviders.batchinference.dev
    - clusterinferenceproviders.batchinference.dev
  verbs: [get]
{{- end }}

{{- /* Secrets are read by name. No list and no watch: those show the contents of all. */}}
{{- define "bio.secretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
